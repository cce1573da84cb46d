"""The command line of `launch.py train`."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.exits import explained_exits, refuse
from cluster.commands.options import TRAIN_PANEL, Address, ConfigFile, Fresh, Overrides, checked_run
from cluster.core.config import RunConfig
from cluster.run_state.run_directory import RunDirectory
from cluster.run_state.run_lock import run_lock
from cluster.runtime.signals import answer_signals

if TYPE_CHECKING:
    from cluster.tracking import RunConsole

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
    """Train a model, or resume an interrupted run. A finished run's summary is printed again.

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
    if dry_run and (fresh or resume):
        refuse("--dry-run does not touch the run: do not combine it with --fresh or --resume")
    checked = checked_run(config_file, overrides, address)
    config = checked.config
    if dry_run:
        _dry_run(config, quiet)
        return
    run_directory = RunDirectory(config.run_directory)
    if resume and not run_directory.config_file.exists():
        refuse(f"{run_directory.path}: no run to resume; leave out --resume to start one")

    from cluster.commands.train.run import TRAINING_ERRORS, run_training, set_aside
    from cluster.runtime.job import receive_keys
    from cluster.tracking import JsonConsole, RunConsole

    answer_signals()
    receive_keys(partial(typer.echo, err=True))
    json_console = JsonConsole(config.name, config.steps) if as_json else None
    with json_console or RunConsole(config.name, config.steps, quiet=quiet) as console:
        if checked.chosen:
            console.event(checked.chosen)
        if not fresh and _show_finished(run_directory, console):
            return  # without the lock: nothing is written
        advice = f"{'--resume in place of --fresh' if fresh else 'the same command'} resumes from the last checkpoint"
        with (
            explained_exits(console, TRAINING_ERRORS, run_directory.logs, advice),
            run_lock(run_directory.path, console.event),
        ):
            if fresh and (moved := set_aside(config)):
                console.event(f"moved the earlier run to {moved}")
            if not _show_finished(run_directory, console):  # another process may have finished it just now
                run_training(config, console)


def _show_finished(run_directory: RunDirectory, console: RunConsole) -> bool:
    """If the run is finished, show its summary. Return whether it is."""
    if run_directory.is_finished:
        console.event("this run is finished; --fresh starts it again, and name=NAME starts another run")
        console.summary(run_directory.read_summary())
    return run_directory.is_finished


def _dry_run(config: RunConfig, quiet: bool) -> None:
    """Run one tiny step with all actors. The files of a failed dry run stay for inspection until the next one."""
    from cluster.commands.train.run import TRAINING_ERRORS, run_training
    from cluster.configuration.dry_run import dry_run_of
    from cluster.tracking import RunConsole

    config = dry_run_of(config)
    run_directory = RunDirectory(config.run_directory)
    answer_signals()
    with (
        RunConsole(config.name, config.steps, quiet=quiet) as console,
        explained_exits(console, TRAINING_ERRORS, run_directory.logs),
        run_lock(run_directory.path, console.event),
    ):
        shutil.rmtree(run_directory.path, ignore_errors=True)  # from a failed dry run
        run_training(config, console)
        shutil.rmtree(run_directory.path)
        console.event("dry run passed: every actor started, sampled, scored, trained, saved and exported")
