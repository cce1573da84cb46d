"""The command line of `launch.py workspace`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.exits import refuse
from cluster.commands.options import OPERATE_PANEL
from cluster.configuration.loading import load_config, load_run_config
from cluster.configuration.messages import setting_names
from cluster.core.config import RunConfig
from cluster.run_state.run_directory import RunDirectory


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(rich_help_panel=OPERATE_PANEL)(workspace)


def workspace(
    source: Annotated[
        Path,
        typer.Argument(metavar="CONFIG_OR_RUN", help="YAML file, or directory of a run, such as runs/demo."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Settings to change, such as tracking.wandb_project=mine."
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="SETTING", help="Setting, such as objective.name, whose value groups runs into one line."
        ),
    ] = None,
) -> None:
    """Save a view of the W&B project with the sections and charts of the report.

    Examples:
      python launch.py workspace configs/demo.yaml
      python launch.py workspace runs/demo --group-by objective.name

    Running it again updates that view. The command needs a key (wandb login)
    and a project with at least one run. WANDB_ENTITY names a team, and
    WANDB_BASE_URL a different server.
    """
    if source.is_dir():
        loaded = load_run_config(RunDirectory(source).config_file, overrides or [])
    else:
        loaded = load_config(source, overrides or [])
    if loaded.problems:
        refuse(*loaded.problems)
    if group_by is not None and group_by not in set(setting_names(RunConfig)):
        refuse(f"--group-by {group_by}: no such setting; docs/configuration.md lists all")

    try:
        from cluster.commands.workspace.view import WorkspaceNotSavedError, save
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "wandb_workspaces":
            raise
        refuse(
            "the package wandb-workspaces is not installed: run pip install wandb-workspaces, or make setup"
        )
    try:
        address = save(loaded.config.tracking.wandb_project, group_by)
    except WorkspaceNotSavedError as error:
        refuse(error)
    typer.echo(f"saved: {address}")
