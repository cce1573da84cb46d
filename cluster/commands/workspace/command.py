"""`launch.py workspace`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.exits import refuse
from cluster.configuration.loading import load_config, setting_names
from cluster.core.config import RunConfig
from cluster.run_state.run_directory import RunDirectory


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(workspace)


def workspace(
    source: Annotated[
        Path,
        typer.Argument(metavar="CONFIG_OR_RUN", help="A YAML file, or a run's directory, such as runs/demo."),
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
            metavar="SETTING", help="Runs with the same value become one line, such as objective.name."
        ),
    ] = None,
) -> None:
    """Save a view of the W&B project, with the sections and charts of the report.

    For example:
      python launch.py workspace configs/demo.yaml
      python launch.py workspace runs/demo --group-by objective.name

    Given again, it brings that view up to date. It needs a key (wandb login), and a project that a run has been logged
    to. WANDB_ENTITY names a team, WANDB_BASE_URL another server.
    """
    loaded = load_config(RunDirectory(source).config_file if source.is_dir() else source, overrides or [])
    if loaded.problems:
        refuse(*loaded.problems)
    if group_by is not None and group_by not in set(setting_names(RunConfig)):
        refuse(f"--group-by {group_by}: there is no such setting; docs/configuration.md lists them")

    try:
        from cluster.commands.workspace.saving import WorkspaceNotSavedError, save
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "wandb_workspaces":
            raise
        refuse("the package wandb-workspaces is not installed: pip install wandb-workspaces, or make setup")
    try:
        address = save(loaded.config.tracking.wandb_project, group_by)
    except WorkspaceNotSavedError as error:
        refuse(error)
    typer.echo(f"saved: {address}")
