"""The command line of `launch.py eval`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from cluster.commands.exits import explained_exits
from cluster.commands.options import EVALUATE_PANEL, Address, AsJson, ConfigFile, Overrides, checked_config
from cluster.core.text import json_text
from cluster.core.types import Split
from cluster.run_state.run_directory import RunDirectory


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("eval", rich_help_panel=EVALUATE_PANEL)(evaluate)


def evaluate(
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    split: Annotated[Split, typer.Option(help="Problems of the task to evaluate on.")] = "eval",
    as_json: AsJson = False,
) -> None:
    """Measure pass@k and maj@k of a model, without training.

    Examples:
      python launch.py eval configs/demo.yaml
      python launch.py eval configs/demo.yaml model.source=runs/demo/final_model
      python launch.py eval configs/demo.yaml evaluation.responses_per_prompt=16
      python launch.py eval configs/demo.yaml --split train --json

    evaluation.prompts and evaluation.responses_per_prompt set the number of
    samples. Sampling uses the settings rollout.*, as in training. Every
    response has a seed, so that the same command gives the same result.

    The directory runs/NAME.eval contains the numbers (evaluation.json), all
    responses with their verdicts (evaluation.jsonl), a page to read
    (evaluation.html), and the logs.
    """
    config = checked_config(config_file, overrides, address, actors=["rollout", "reward"])

    from cluster.commands.evaluate.run import run_evaluation
    from cluster.commands.evaluate.tables import report_tables
    from cluster.runtime.signals import answer_signals
    from cluster.tracking import RunConsole
    from cluster.training.session import RUN_ERRORS

    answer_signals()
    directory = RunDirectory(config.run_directory).evaluation
    terminal = Console(stderr=as_json, highlight=False)
    with (
        RunConsole(config.name, 0, console=terminal) as console,
        explained_exits(console, RUN_ERRORS, directory.logs),
    ):
        report = run_evaluation(config, split, console)
    if as_json:
        typer.echo(json_text(report))
    else:
        for table in report_tables(report):
            terminal.print(table)
        typer.echo(f"responses: {directory.evaluation_stem().with_suffix('.html')}")
