"""The command line of `launch.py report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.exits import refuse
from cluster.commands.options import OPERATE_PANEL
from cluster.core.reading import shown_path


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(rich_help_panel=OPERATE_PANEL)(report)


def report(
    run_directories: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIRECTORY...", help="Directories of runs, such as runs/demo.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file to write (default: report.html beside the runs)."),
    ] = None,
) -> None:
    """Write an HTML page about one run, or several runs side by side.

    Examples:
      python launch.py report runs/demo
      python launch.py report runs/demo runs/demo-grpo -o comparison.html

    The page is a single file that needs neither network nor W&B. It shows
    plots of all metrics, the settings that differ between the runs, and
    sampled responses. The plots are also written as PNG files. Runs may still
    be in progress.
    """
    from cluster.commands.report.page import write_report

    try:
        page, plots = write_report(run_directories, output)
    except OSError as error:
        refuse(error)
    typer.echo(f"wrote {shown_path(page)}, and the plots to {shown_path(plots)}")
