"""Exit codes and the final messages of a command that does not end well. Ray-free, torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from cluster.core.errors import RefusedError
from cluster.core.failures import trimmed
from cluster.core.reading import shown_path
from cluster.core.text import plain_text
from cluster.runtime.signals import Terminated, note_signals

if TYPE_CHECKING:
    from cluster.tracking import RunConsole

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
EXIT_TERMINATED = 143


def refuse(*reasons: object) -> NoReturn:
    """Print each reason as one unformatted line on stderr, and exit with code 2: the request cannot be carried out."""
    stderr = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
    for reason in reasons:
        text = str(reason).encode("utf-8", "backslashreplace").decode()
        stderr.print(plain_text(text), markup=False)
    raise typer.Exit(EXIT_USAGE)


class ExplainedGroup(TyperGroup):
    """The commands. What a command refuses, wherever it notices it, is one line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except RefusedError as error:
            refuse(error)
        except typer.BadParameter as error:
            if type(error) is not typer.BadParameter:  # something is missing: the usage helps
                raise
            refuse(f"{_origin(error)}: {error.message}")
        except OSError as error:
            if error.filename is None or isinstance(error, ConnectionError):
                raise
            refuse(f"{shown_path(Path(os.fsdecode(error.filename)))}: {error.strerror}")
        finally:
            note_signals()


def _origin(error: typer.BadParameter) -> str:
    """Return where a value comes from: the name of its option or of its variable."""
    parameter, context = error.param, error.ctx
    if parameter is None or context is None:
        return "the command line"
    source = context.get_parameter_source(parameter.name or "")
    if source is not None and source.name == "ENVIRONMENT":
        variables = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or ()
        return next((name for name in variables if os.environ.get(name)), "the environment")
    return max(parameter.opts, key=len)


@contextmanager
def explained_exits(
    console: RunConsole, errors: tuple[type[Exception], ...], logs: Path, advice: str = ""
) -> Iterator[None]:
    """Translate Ctrl-C, SIGTERM, SIGHUP, the expected `errors` of the block, and a refusal into a message and
    an exit code.

    No traceback is shown for them. Any other exception is a bug and keeps its traceback.

    Args:
        logs: The directory that the message of an error points to.
        advice: The way to continue after the exit.
    """
    hint = f"; {advice}" if advice else ""
    try:
        yield
    except KeyboardInterrupt as interruption:
        console.event(f"{how_ended(interruption)}{hint}")
        raise typer.Exit(exit_code_of(interruption)) from None
    except RefusedError as error:
        refuse(error)
    except errors as error:
        console.warning(f"stopped: {trimmed(error)}")
        console.warning(f"logs: {logs}{hint}")
        raise typer.Exit(EXIT_FAILED) from None


def how_ended(interruption: KeyboardInterrupt) -> str:
    """Return what ended the command, for its last message."""
    return f"received {interruption.name}" if isinstance(interruption, Terminated) else "interrupted"


def exit_code_of(interruption: KeyboardInterrupt) -> int:
    """Return the exit code of an interrupted command. SIGHUP counts as SIGTERM."""
    return EXIT_TERMINATED if isinstance(interruption, Terminated) else EXIT_INTERRUPTED
