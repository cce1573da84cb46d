"""The command line. Thin: it reads the configuration, checks it, and calls `cluster`.

python launch.py train configs/demo.yaml         train, or resume a run cut short
python launch.py train configs/demo.yaml seed=1  with a setting changed
python launch.py eval configs/demo.yaml          pass@1 and pass@k of a model
python launch.py export runs/demo my-model       a run's checkpoint as a model
python launch.py scale runs/demo --rollout-workers 4   give a live run another number of rollout workers
python launch.py compare configs/compare_objectives.yaml   train under several settings and seeds, and compare
python launch.py submit configs/demo.yaml        train on a Ray cluster, as a job; status, logs, stop, list
python launch.py report runs/demo                a page with plots, settings and transcripts, of one run or several
python launch.py workspace configs/demo.yaml     save a view of the W&B project
python launch.py doctor configs/demo.yaml        is everything there that a run needs?
python launch.py check configs/demo.yaml         find all mistakes, start nothing
python launch.py tasks                           what can be trained on
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.commands.doctor import command as doctor_command
from cluster.commands.exits import EXIT_FAILED, EXIT_INTERRUPTED, answer_sigterm, explained_exits, refuse
from cluster.commands.export_plan import ExportRefusedError, plan_export
from cluster.commands.jobs import commands as job_commands
from cluster.commands.workspace import command as workspace_command
from cluster.configuration.loading import load_config
from cluster.configuration.preflight import ROOMS, Room, preflight, task_notes
from cluster.core.config import RunConfig
from cluster.core.types import Split
from cluster.run_state.run_directory import RunDirectory
from cluster.runtime.auth import send_token_to

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/demo.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as rollout.workers=4."),
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join (default: RAY_ADDRESS, or this machine).")
]


@app.command()
def train(
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Move an earlier run of this name aside and start anew.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an earlier run, or fail if there is none.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="One tiny step with all actors, then clear it away again.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the summary, and what failed, only.")] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object per line: stages, events, steps, the summary."),
    ] = False,
) -> None:
    """Train a model. A run that was cut short is resumed; a finished one is shown.

    For example:
      python launch.py train configs/demo.yaml
      python launch.py train configs/demo.yaml objective.name=grpo name=demo-grpo
      python launch.py train configs/demo.yaml --resume
      python launch.py train configs/demo.yaml --dry-run
      python launch.py train configs/demo.yaml --json | jq 'select(.kind == "step")'
    """
    if quiet and as_json:
        refuse("--quiet says little and --json says all: give one of them")
    if fresh and resume:
        refuse("--fresh starts anew and --resume goes on: give one of them")
    config = _checked(config_file, overrides, address)
    if dry_run:
        if fresh or resume:
            refuse("--dry-run leaves the run alone: give neither --fresh nor --resume")
        _dry_run(config, quiet)
        return
    run_directory = RunDirectory(config.run_directory)
    if resume and not run_directory.config_file.exists():
        refuse(f"{run_directory.path}: there is no run to resume; without --resume one is started")

    from cluster.commands.train import TRAINING_ERRORS, set_aside
    from cluster.commands.train import train as run_training
    from cluster.runtime.job import receive_keys
    from cluster.tracking import JsonConsole, RunConsole

    command = "--resume in place of --fresh" if fresh else "the same command"
    advice = f"{command} goes on from the last checkpoint"
    receive_keys(partial(typer.echo, err=True))
    chosen = JsonConsole(config.name, config.steps) if as_json else None
    with chosen or RunConsole(config.name, config.steps, quiet=quiet) as console:
        if fresh and (moved := set_aside(config)):
            console.event(f"the earlier run is now {moved}")
        if run_directory.is_finished:
            console.event("this run is finished; --fresh starts it anew, name=NAME starts another")
            console.summary(run_directory.read_summary())
            return
        with explained_exits(console, TRAINING_ERRORS, run_directory.logs, advice):
            run_training(config, console)


def _dry_run(config: RunConfig, quiet: bool) -> None:
    """Walk the whole graph once. What it leaves is removed, if it did not fail."""
    from cluster.commands.train import TRAINING_ERRORS
    from cluster.commands.train import train as run_training
    from cluster.configuration.dry_run import dry_run_of
    from cluster.tracking import RunConsole

    config = dry_run_of(config)
    run_directory = RunDirectory(config.run_directory)
    shutil.rmtree(run_directory.path, ignore_errors=True)  # of a dry run that failed
    with RunConsole(config.name, config.steps, quiet=quiet) as console:
        with explained_exits(console, TRAINING_ERRORS, run_directory.logs):
            run_training(config, console)
        shutil.rmtree(run_directory.path)
        console.event("dry run: ok. Every actor started, sampled, judged, learned, saved and exported")


@app.command("eval")
def evaluate(
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    split: Annotated[Split, typer.Option(help="Which of the task's problems to ask.")] = "eval",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout; all else goes to stderr.")
    ] = False,
) -> None:
    """Measure pass@k and maj@k of a model. Nothing is learned, no run is made.

    For example:
      python launch.py eval configs/demo.yaml
      python launch.py eval configs/demo.yaml model.source=runs/demo/final_model
      python launch.py eval configs/demo.yaml evaluation.responses_per_prompt=16
      python launch.py eval configs/demo.yaml --split train --json

    How much is asked: evaluation.prompts and evaluation.responses_per_prompt.
    How it is sampled: rollout.*, as in training; with rollout.max_staleness=0
    every response has a seed, and the same command gives the same result.
    In runs/NAME.eval are the numbers (evaluation.json), all responses with their
    verdicts (evaluation.jsonl), a page to read (evaluation.html), and logs.
    """
    config = _checked(config_file, overrides, address, rooms=["rollout", "reward"])

    from cluster.commands.evaluate import evaluate as run_evaluation
    from cluster.commands.evaluation_table import report_tables
    from cluster.tracking import RunConsole
    from cluster.training.session import RUN_ERRORS

    directory = RunDirectory(config.run_directory).evaluation
    terminal = Console(stderr=as_json, highlight=False)
    with (
        RunConsole(config.name, 0, console=terminal) as console,
        explained_exits(console, RUN_ERRORS, directory.logs),
    ):
        report = run_evaluation(config, split, console)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        for table in report_tables(report):
            terminal.print(table)
        typer.echo(f"responses to read: {directory.evaluation_stem().with_suffix('.html')}")


@app.command()
def export(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN_DIRECTORY", help="Such as runs/demo.")],
    destination: Annotated[Path, typer.Argument(metavar="DESTINATION", help="A new or empty directory.")],
    step: Annotated[int | None, typer.Option(help="Of the checkpoint (default: the newest).")] = None,
    address: Address = None,
) -> None:
    """Write the model of a run's checkpoint as a Hugging Face directory.

    For example:
      python launch.py export runs/demo demo-model
      python launch.py export runs/demo demo-at-50 --step 50
      python launch.py eval configs/demo.yaml model.source=./demo-at-50

    It starts the learner ranks that the run's config.yaml names, whatever their
    number and ZeRO stage, and needs the room that they need.
    """
    try:
        plan = plan_export(run_directory, destination, step, address)
    except ExportRefusedError as refusal:
        refuse(refusal)

    from cluster.commands.export import export as run_export
    from cluster.tracking import RunConsole
    from cluster.training.session import RUN_ERRORS

    with RunConsole(plan.config.name, 0) as console, explained_exits(console, RUN_ERRORS, plan.run.logs):
        run_export(plan, console)
        console.event(f"{plan.destination} is the model of step {plan.step}")


@app.command()
def scale(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN_DIRECTORY", help="Such as runs/demo.")],
    rollout_workers: Annotated[
        int, typer.Option("--rollout-workers", min=1, help="How many there are to be.")
    ],
    address: Annotated[
        str | None, typer.Option(help="The run's Ray cluster (default: what the run directory says).")
    ] = None,
) -> None:
    """Change the number of rollout workers of a live run.

    For example:
      python launch.py scale runs/demo --rollout-workers 4
      python launch.py scale runs/demo --rollout-workers 1

    Returns at once. New workers start, pull the current weights and then take
    prompts; those that go finish what they hold first. Training does not stop.
    """
    known = RunDirectory(run_directory).ray_address_file
    if address is None and known.exists():
        address = known.read_text(encoding="utf-8").strip()
        send_token_to(address)

    from cluster.training.control import NoLiveRunError, ScalingRefusedError
    from cluster.training.control import scale as scale_run

    try:
        typer.echo(scale_run(run_directory, rollout_workers, address))
    except (NoLiveRunError, ScalingRefusedError, TimeoutError) as error:
        refuse(error)


@app.command()
def compare(
    comparison_file: Annotated[
        Path,
        typer.Argument(metavar="COMPARISON", help="A YAML file, such as configs/compare_objectives.yaml."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings for all runs, such as steps=50."),
    ] = None,
    address: Address = None,
    side_by_side: Annotated[int, typer.Option("--side-by-side", min=1, help="Runs at a time.")] = 1,
    only_table: Annotated[
        bool, typer.Option("--only-table", help="Start nothing: show what the finished runs say.")
    ] = False,
) -> None:
    """Train under several settings, with several seeds each, and compare.

    For example:
      python launch.py compare configs/compare_objectives.yaml
      python launch.py compare configs/compare_objectives.yaml steps=50
      python launch.py compare configs/compare_objectives.yaml --only-table

    Given again, it goes on: finished runs are not run again, and interrupted
    ones resume. Tables, plots and the runs are in runs/NAME.
    """
    from cluster.commands.compare.plan import load_comparison

    comparison, problems = load_comparison(comparison_file, overrides or [], address)
    if problems:
        refuse(*problems)

    from cluster.commands.compare.comparing import OtherSettingsError
    from cluster.commands.compare.comparing import compare as run_comparison

    answer_sigterm()
    terminal = Console(highlight=False)
    command = [sys.executable, str(Path(__file__).resolve())]
    try:
        complete = run_comparison(comparison, command, side_by_side, terminal, only_table=only_table)
    except OtherSettingsError as error:
        refuse(error)
    except KeyboardInterrupt:
        terminal.print("interrupted; the same command goes on")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not complete and not only_table:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def report(
    run_directories: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIRECTORY...", help="Such as runs/demo.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The page (default: report.html beside what it is about)."),
    ] = None,
) -> None:
    """Write a page about one run, or several side by side. No network, no W&B.

    For example:
      python launch.py report runs/demo
      python launch.py report runs/demo runs/demo-grpo -o comparison.html

    One HTML file that needs nothing else: plots of all metrics, what the runs'
    settings differ in, sampled responses. The plots are also written as PNG.
    Runs that still go on can be shown too.
    """
    from cluster.commands.report.runs import NotARunError
    from cluster.commands.report.writing import write_report

    try:
        page, plots = write_report(run_directories, output)
    except (NotARunError, OSError) as error:
        refuse(error)
    typer.echo(f"{page}, and plots in {plots}")


@app.command()
def check(
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    cluster: Annotated[
        bool,
        typer.Option("--cluster", help="Join the Ray cluster, and see whether the run finds room there."),
    ] = False,
) -> None:
    """Find every mistake in a configuration, one line each. Starts nothing.

    For example:
      python launch.py check configs/demo.yaml
      python launch.py check configs/demo.yaml --cluster --address HOST:6379
    """
    config = _checked(config_file, overrides, address)
    if cluster:
        typer.echo(f"{config_file}: the cluster has room for it. {_checked_cluster(config)}")
    typer.echo(f"{config_file}: ok. {arithmetic(config)}")
    for note in task_notes(config):
        typer.echo(f"note: {note}")


@app.command()
def tasks() -> None:
    """List the tasks, each with a prompt, a right and a wrong answer."""
    from reward.registry import task_names
    from reward.showcase import showcase

    for name in task_names():
        for line in showcase(name):
            typer.echo(line)


def arithmetic(config: RunConfig) -> str:
    """The batch sizes in words that cannot be misread."""
    rollout, learner = config.rollout, config.learner
    return (
        f"{config.steps} steps of {rollout.prompts_per_step} prompts × {rollout.responses_per_prompt} responses = "
        f"{config.responses_per_step} responses, in {config.optimizer_steps_per_batch} optimizer step(s) over "
        f"{learner.ranks} learner rank(s), micro-batches of up to {learner.micro_batch_tokens} tokens; "
        f"{rollout.workers} workers"
    )


def _checked_cluster(config: RunConfig) -> str:
    """What the cluster has, or every shortfall on stderr and exit code 2."""
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if not address:
        refuse("--cluster needs the cluster's --address, such as HOST:6379 or auto")
    send_token_to(address)

    from cluster.commands.check import check_cluster

    try:
        problems, has = check_cluster(config)
    except ConnectionError as error:
        refuse(error)
    if problems:
        refuse(*problems)
    return has


def _checked(
    config_file: Path, overrides: list[str] | None, address: str | None, rooms: Collection[Room] = ROOMS
) -> RunConfig:
    """The configuration, or every problem of it on stderr and exit code 2. `rooms` are those that will have actors."""
    loaded = load_config(
        config_file, [*(overrides or []), *([f"cluster.address={address}"] if address else [])]
    )
    problems = [*loaded.problems, *(preflight(loaded.config, rooms) if loaded.readable else [])]
    if problems:
        refuse(*problems)
    return loaded.config


job_commands.register(app)
doctor_command.register(app)
workspace_command.register(app)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
