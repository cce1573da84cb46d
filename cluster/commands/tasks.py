"""`launch.py tasks`: list the tasks that a model can be trained on."""

from __future__ import annotations

import typer

from cluster.commands.options import INSPECT_PANEL


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(rich_help_panel=INSPECT_PANEL)(tasks)


def tasks() -> None:
    """List the tasks, each with a prompt, a correct answer and an incorrect answer."""
    from reward.registry import describe_task, task_names

    for name in task_names():
        for line in describe_task(name):
            typer.echo(line)
