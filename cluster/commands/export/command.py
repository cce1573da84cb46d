"""The command line of `launch.py export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.exits import explained_exits
from cluster.commands.option_types import number
from cluster.commands.options import EVALUATE_PANEL, Address, RunArgument
from cluster.core.schema import CountOrZero


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(rich_help_panel=EVALUATE_PANEL)(export)


def export(
    run_directory: RunArgument,
    destination: Annotated[Path, typer.Argument(metavar="DESTINATION", help="New or empty directory.")],
    step: Annotated[
        int | None,
        typer.Option(
            metavar="INTEGER",
            parser=number(CountOrZero),
            help="Step of the checkpoint (default: the newest).",
        ),
    ] = None,
    address: Address = None,
) -> None:
    """Write the model of a checkpoint as a Hugging Face directory.

    Examples:
      python launch.py export runs/demo demo-model
      python launch.py export runs/demo demo-at-50 --step 50
      python launch.py eval configs/demo.yaml model.source=./demo-at-50

    The run may be live: its checkpoint is kept until it is exported.

    The command starts the learner ranks of the run's config.yaml, with any
    number of ranks and any ZeRO stage, and needs their resources.
    """
    from cluster.commands.export.plan import plan_export

    plan = plan_export(run_directory, destination, step, address)

    from cluster.commands.export.run import run_export
    from cluster.runtime.signals import answer_signals
    from cluster.tracking import RunConsole
    from cluster.training.session import RUN_ERRORS

    answer_signals()
    with (
        RunConsole(plan.config.name, 0) as console,
        explained_exits(console, RUN_ERRORS, plan.run.export.logs),
    ):
        run_export(plan, console)
        console.event(f"exported the model of step {plan.step} to {plan.destination}")
