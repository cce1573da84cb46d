"""The command line. Thin: it reads the configuration, checks it, and calls `cluster`.

python launch.py train configs/demo.yaml                      train, or resume a run that was cut short
python launch.py train configs/demo.yaml seed=1 name=second   with settings changed
python launch.py check configs/demo.yaml                      find every mistake, start nothing
python launch.py tasks                                        what can be trained on
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.config import RunConfig
from cluster.config_loading import load_config
from cluster.preflight import preflight

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/demo.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as rollout.workers=4."),
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join (default: RAY_ADDRESS, or this machine).")
]

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


@app.command()
def train(
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    fresh: Annotated[
        bool, typer.Option(help="Move an earlier run of this name aside and start anew.")
    ] = False,
    quiet: Annotated[bool, typer.Option(help="Print the summary only.")] = False,
) -> None:
    """Train a model. A run that was cut short is resumed; a finished one is shown."""
    config = _checked(config_file, [*(overrides or []), *([f"cluster.address={address}"] if address else [])])

    from cluster.run_directory import RunDirectory
    from cluster.tracking import RunConsole
    from cluster.training import TRAINING_ERRORS, set_aside
    from cluster.training import train as run_training

    with RunConsole(config.name, config.steps, quiet=quiet) as console:
        if fresh and (moved := set_aside(config)):
            console.event(f"the earlier run is now {moved}")
        run_directory = RunDirectory(config.run_directory)
        if run_directory.is_finished:
            console.event("this run is finished; --fresh starts it anew, name=NAME starts another")
            console.summary(run_directory.read_summary())
            return
        try:
            run_training(config, console)
        except KeyboardInterrupt:
            console.event("interrupted; the same command goes on from the last checkpoint")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except TRAINING_ERRORS as error:
            console.event(f"stopped: {error}")
            console.event(f"logs: {run_directory.logs}; the same command goes on from the last checkpoint")
            raise typer.Exit(1) from None


@app.command()
def check(config_file: ConfigFile, overrides: Overrides = None, address: Address = None) -> None:
    """Find every mistake in a configuration, one line each. Starts nothing."""
    config = _checked(config_file, [*(overrides or []), *([f"cluster.address={address}"] if address else [])])
    typer.echo(f"{config_file}: ok. {arithmetic(config)}")


@app.command()
def tasks() -> None:
    """List the tasks, each with an example."""
    from reward.tasks import build_task, task_names

    for name in task_names():
        task = build_task(name, {})
        typer.echo(
            f"{name}: {len(task.problems('train'))} training, {len(task.problems('held_out'))} held-out problems"
        )
        typer.echo(f"  for example: {task.render(task.problems('train')[0])!r}")


def arithmetic(config: RunConfig) -> str:
    """The batch sizes in words that cannot be misread."""
    rollout, learner = config.rollout, config.learner
    return (
        f"{config.steps} steps of {rollout.prompts_per_step} prompts × {rollout.responses_per_prompt} responses = "
        f"{config.responses_per_step} responses, in {learner.mini_batches} optimiser step(s) over {learner.ranks} "
        f"learner rank(s), micro-batches of up to {learner.micro_batch_tokens} tokens; {rollout.workers} workers"
    )


def _checked(config_file: Path, overrides: list[str]) -> RunConfig:
    """The configuration, or every problem of it on stderr and exit code 2."""
    loaded = load_config(config_file, overrides)
    problems = [*loaded.problems, *(preflight(loaded.config) if loaded.readable else [])]
    if problems:
        stderr = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
        for problem in problems:
            stderr.print(str(problem), markup=False)
        raise typer.Exit(EXIT_USAGE)
    return loaded.config


def main() -> None:
    app()


if __name__ == "__main__":
    main()
