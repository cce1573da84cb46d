"""How a command ends when it does not end well: the exit codes, and the words for a person. Ray-free, torch-free."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console

from cluster.core.failures import trimmed
from cluster.core.text import plain_text

if TYPE_CHECKING:
    from cluster.tracking import RunConsole

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM: whoever runs the machine wants it back. It is answered like Ctrl-C."""


def answer_sigterm() -> None:
    """From now on SIGTERM lets a command clear away what it has started, as Ctrl-C does."""

    def terminate(*_: object) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)


def refuse(*reasons: object) -> NoReturn:
    """End, since what was asked for cannot be done: each reason is a line on stderr, printed as it is."""
    stderr = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
    for reason in reasons:
        stderr.print(plain_text(str(reason)), markup=False)
    raise typer.Exit(EXIT_USAGE)


@contextmanager
def explained_exits(
    console: RunConsole, errors: tuple[type[Exception], ...], logs: Path, advice: str = ""
) -> Iterator[None]:
    """Ctrl-C, and the failures in `errors`, end the block with their exit code and a word, without a traceback. Other
    errors are ours, and keep theirs. `advice` is how to go on."""
    hint = f"; {advice}" if advice else ""
    try:
        yield
    except KeyboardInterrupt as interruption:
        terminated = isinstance(interruption, Terminated)
        console.event(f"{'told to go (SIGTERM)' if terminated else 'interrupted'}{hint}")
        raise typer.Exit(EXIT_TERMINATED if terminated else EXIT_INTERRUPTED) from None
    except errors as error:
        console.warning(f"stopped: {trimmed(error)}")
        console.warning(f"logs: {logs}{hint}")
        raise typer.Exit(EXIT_FAILED) from None
