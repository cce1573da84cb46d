"""The command line: a list of commands. Each is a module of `cluster/commands` that registers itself."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.commands import check, scale, tasks
from cluster.commands.compare import command as compare
from cluster.commands.doctor import command as doctor
from cluster.commands.evaluate import command as evaluate
from cluster.commands.exits import EXIT_FAILED, ExplainedGroup
from cluster.commands.export import command as export
from cluster.commands.jobs import command as jobs
from cluster.commands.plan import command as plan
from cluster.commands.replay import command as replay
from cluster.commands.report import command as report
from cluster.commands.train import command as train
from cluster.commands.workspace import command as workspace
from cluster.core.output import protect_standard_streams
from cluster.core.project import code_version

HELP = """\
Train, evaluate and operate HPO/GRPO runs on Ray.

Examples:
  python launch.py check configs/demo.yaml    validate a configuration
  python launch.py train configs/demo.yaml    train, or resume a run
  python launch.py report runs/demo           write a page about a run

Each command has its own help, with examples: launch.py COMMAND --help
"""
_OTHERS = (workspace, jobs, check, doctor, tasks)
COMMANDS = (train, compare, plan, evaluate, export, scale, report, replay, *_OTHERS)

app = typer.Typer(
    cls=ExplainedGroup, help=HELP, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False
)
for command in COMMANDS:
    command.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(code_version())
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and the commit."
        ),
    ] = False,
) -> None:
    """Hold the options that belong to no command. The help text is `HELP`."""


def main() -> None:
    """Run the command line. Output that is lost does not end a command, so that it ends with its usual exit code. Only
    a disk that is full is an error, unless the output continues elsewhere."""
    stdout = protect_standard_streams()
    try:
        app()
    finally:
        stdout.flush()
        if stdout.is_missed:
            typer.echo(f"the output could not be written: {stdout.lost}", err=True)
            raise SystemExit(EXIT_FAILED)


if __name__ == "__main__":
    main()
