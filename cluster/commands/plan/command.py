"""The command line of `launch.py plan`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field
from rich.console import Console

from cluster.commands.exits import EXIT_FAILED, explained_exits, refuse
from cluster.commands.option_types import number
from cluster.commands.options import EVALUATE_PANEL, Address, AsJson, ConfigFile, Overrides, checked_config
from cluster.core.reading import shown_path
from cluster.core.schema import Count
from cluster.core.text import json_text
from cluster.run_state.run_directory import RunDirectory

MOST_RESPONSES = 4096
"""The number of responses to a prompt that have seeds of their own."""
_Responses = Annotated[Count, Field(le=MOST_RESPONSES)]
_PromptsOption = Annotated[
    int,
    typer.Option(metavar="INTEGER", parser=number(Count), help="Number of training prompts to sample."),
]
_ResponsesOption = Annotated[
    int,
    typer.Option(metavar="INTEGER", parser=number(_Responses), help="Number of responses to each of them."),
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(rich_help_panel=EVALUATE_PANEL)(plan)


def plan(
    config_file: ConfigFile,
    overrides: Overrides = None,
    prompts: _PromptsOption = 128,
    responses: _ResponsesOption = 16,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file to write (default: runs/NAME.plan/plan.html)."),
    ] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Predict whether training can work, and with which group size.

    Examples:
      python launch.py plan configs/demo.yaml
      python launch.py plan configs/demo.yaml task.options.number_max=42
      python launch.py plan configs/demo.yaml --prompts 512 --responses 32
      python launch.py plan configs/demo.yaml --json

    The command samples responses to training prompts with the model of the
    configuration, fits the distribution of pass rates over prompts, and
    predicts for each group size how many groups have a gradient signal, A-HPO's
    α, and the time per such group. It starts no learner and touches no run.

    --prompts and --responses take the place of evaluation.prompts and
    evaluation.responses_per_prompt. The exit code is 1 if training cannot work.

    The directory runs/NAME.plan contains the numbers (plan.json), a page to
    read (plan.html), all responses (evaluation.*), and the logs.
    """
    if problems := [*_problems_of_output(output)]:
        refuse(*problems)
    sample = [f"evaluation.prompts={prompts}", f"evaluation.responses_per_prompt={responses}"]
    config = checked_config(config_file, [*(overrides or []), *sample], address, actors=["rollout", "reward"])

    from cluster.commands.plan.run import PLAN_ERRORS, run_plan
    from cluster.commands.plan.tables import closing_lines, plan_tables
    from cluster.runtime.signals import answer_signals
    from cluster.tracking import RunConsole

    answer_signals()
    directory = RunDirectory(config.run_directory).plan
    terminal = Console(stderr=as_json, highlight=False)
    with (
        RunConsole(config.name, 0, console=terminal) as console,
        explained_exits(console, PLAN_ERRORS, directory.logs),
    ):
        report = run_plan(config, output, console)
    if as_json:
        typer.echo(json_text(report))
    else:
        for table in plan_tables(report):
            terminal.print(table)
        for line in [report["reason"], *closing_lines(report), f"page: {output or directory.plan_page}"]:
            terminal.print(line, soft_wrap=True, markup=False)
    if report["works"] == "no":
        raise typer.Exit(EXIT_FAILED)


def _problems_of_output(output: Path | None) -> Iterator[str]:
    """Yield why `output` cannot be written, before the sampling takes its time."""
    if output is None:
        return
    if output.exists() and not output.is_file():
        yield f"--output: {shown_path(output)} is not a file; name another one"
    elif not output.absolute().parent.is_dir():
        yield f"--output: {shown_path(output.absolute().parent)} is not a directory; create it, or name another file"
    elif not os.access(output.absolute().parent, os.W_OK):
        yield f"--output: {shown_path(output.absolute().parent)} is not writable; name another file"
