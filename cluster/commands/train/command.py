"""The command line of `launch.py train`."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Annotated

import typer

from cluster.commands.exits import explained_exits, refuse
from cluster.commands.options import TRAIN_PANEL, Address, ConfigFile, Fresh, Overrides, checked_run
from cluster.core.config import RunConfig
from cluster.run_state.run_directory import RunDirectory

_Resume = Annotated[
    bool, typer.Option("--resume", help="Resume an earlier run; fail if there is no such run.")
]
_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Run one tiny step with all actors, then delete its files.")
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(rich_help_panel=TRAIN_PANEL)(train)


def train(
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    fresh: Fresh = False,
    resume: _Resume = False,
    dry_run: _DryRun = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print only the final summary, or the error.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object per line: stages, events, steps, the summary."),
    ] = False,
) -> None:
    """Train a model, or resume an interrupted run.

    Running it again prints the finished run's summary.

    Examples:
      python launch.py train configs/demo.yaml
      python launch.py train configs/demo.yaml objective.name=grpo name=demo-grpo
      python launch.py train configs/demo.yaml --resume
      python launch.py train configs/demo.yaml --dry-run
      python launch.py train configs/demo.yaml --json | jq 'select(.kind == "step")'
    """
    if quiet and as_json:
        refuse("--quiet prints only the summary and --json prints every event: give one of them")
    if fresh and resume:
        refuse("--fresh starts from scratch and --resume continues a run: give one of them")
    checked = checked_run(config_file, overrides, address)
    config = checked.config
    if dry_run:
        if fresh or resume:
            refuse("--dry-run does not touch the run: do not combine it with --fresh or --resume")
        _dry_run(config, quiet)
        return
    run_directory = RunDirectory(config.run_directory)
    if resume and not run_directory.config_file.exists():
        refuse(f"{run_directory.path}: no run to resume; leave out --resume to start one")

    from cluster.commands.train.run import TRAINING_ERRORS, run_training, set_aside
    from cluster.runtime.job import receive_keys
    from cluster.tracking import JsonConsole, RunConsole

    receive_keys(partial(typer.echo, err=True))
    json_console = JsonConsole(config.name, config.steps) if as_json else None
    with json_console or RunConsole(config.name, config.steps, quiet=quiet) as console:
        if checked.chosen:
            console.event(checked.chosen)
        if fresh and (moved := set_aside(config)):
            console.event(f"moved the earlier run to {moved}")
        if run_directory.is_finished:
            console.event("this run is finished; --fresh starts it again, and name=NAME starts another run")
            console.summary(run_directory.read_summary())
            return
        command = "--resume in place of --fresh" if fresh else "the same command"
        advice = f"{command} resumes from the last checkpoint"
        with explained_exits(console, TRAINING_ERRORS, run_directory.logs, advice):
            run_training(config, console)


def _dry_run(config: RunConfig, quiet: bool) -> None:
    """Run one tiny step with all actors. The files of a failed dry run stay for inspection until the next one."""
    from cluster.commands.train.run import TRAINING_ERRORS, run_training
    from cluster.configuration.dry_run import dry_run_of
    from cluster.tracking import RunConsole

    config = dry_run_of(config)
    run_directory = RunDirectory(config.run_directory)
    shutil.rmtree(run_directory.path, ignore_errors=True)  # from a failed dry run
    with RunConsole(config.name, config.steps, quiet=quiet) as console:
        with explained_exits(console, TRAINING_ERRORS, run_directory.logs):
            run_training(config, console)
        shutil.rmtree(run_directory.path)
        console.event("dry run passed: every actor started, sampled, scored, trained, saved and exported")
