"""The command line of `launch.py compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.commands.exits import EXIT_FAILED, exit_code_of, how_ended, refuse
from cluster.commands.option_types import number
from cluster.commands.options import TRAIN_PANEL, Address
from cluster.core.project import ROOT
from cluster.core.schema import Count
from cluster.runtime.signals import answer_signals


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(rich_help_panel=TRAIN_PANEL)(compare)


def compare(
    comparison_file: Annotated[
        Path,
        typer.Argument(metavar="COMPARISON", help="YAML file, such as configs/compare_objectives.yaml."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings for all runs, such as steps=50."),
    ] = None,
    address: Address = None,
    side_by_side: Annotated[
        int,
        typer.Option(
            "--side-by-side", metavar="INTEGER", parser=number(Count), help="Number of parallel runs."
        ),
    ] = 1,
    only_table: Annotated[
        bool, typer.Option("--only-table", help="Start nothing; show the results of the finished runs.")
    ] = False,
) -> None:
    """Train with several settings and seeds, and compare the results.

    Examples:
      python launch.py compare configs/compare_objectives.yaml
      python launch.py compare configs/compare_objectives.yaml steps=50
      python launch.py compare configs/compare_objectives.yaml --only-table

    Running it again resumes interrupted runs and skips finished ones. Tables,
    plots and the runs are in runs/NAME.
    """
    from cluster.commands.compare.plan import load_comparison

    comparison, problems = load_comparison(comparison_file, overrides or [], address)
    if problems:
        refuse(*problems)

    from cluster.commands.compare.run import OtherSettingsError, run_comparison
    from cluster.commands.compare.trials import FORCED_AFTER_S

    answer_signals(FORCED_AFTER_S)
    terminal = Console(highlight=False)
    command = [sys.executable, str(ROOT / "launch.py")]
    try:
        complete = run_comparison(comparison, command, side_by_side, terminal, only_table=only_table)
    except OtherSettingsError as error:
        refuse(error)
    except KeyboardInterrupt as interruption:
        terminal.print(f"{how_ended(interruption)}; the same command resumes the comparison")
        raise typer.Exit(exit_code_of(interruption)) from None
    if not complete and not only_table:
        raise typer.Exit(EXIT_FAILED)
