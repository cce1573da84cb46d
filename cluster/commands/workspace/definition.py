"""A W&B workspace with the sections and charts of `cluster/metrics/catalogue.py`. Nothing is asked of W&B."""

from __future__ import annotations

import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as workspaces
from wandb_workspaces import expr

from cluster.metrics.catalogue import SECTIONS, Section

NAME = "hpo-trainer"
STEP = "step"
"""The axis of all charts: what `WandbSink` logs each row under."""
COLUMNS = 3


def definition(entity: str, project: str, group_by: str | None = None) -> workspaces.Workspace:
    """The view of `entity`'s `project`, unsaved.

    Args:
        entity: a person or a team of W&B.
        project: as `tracking.wandb_project`.
        group_by: a setting, such as `objective.name`: runs with the same value become one line, their mean.
    """
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[_section(section) for section in SECTIONS],
        settings=workspaces.WorkspaceSettings(x_axis=STEP),
        runset_settings=workspaces.RunsetSettings(groupby=[expr.Config(group_by)] if group_by else []),
    )


def _section(section: Section) -> workspaces.Section:
    charts = [panels.LinePlot(title=chart.title, x=STEP, y=list(chart.keys)) for chart in section.charts]
    return workspaces.Section(
        name=section.title,
        panels=charts,
        is_open=True,
        layout_settings=workspaces.SectionLayoutSettings(columns=COLUMNS, rows=-(-len(charts) // COLUMNS)),
        panel_settings=workspaces.SectionPanelSettings(x_axis=STEP),
    )
