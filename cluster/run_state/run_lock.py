"""One writer per run directory: a command that writes a directory holds its lock for as long as it runs.

runs/demo           the directory
runs/.demo.lock     its lock, which is beside it, so that it stays when the directory is renamed or deleted

Commands that only read need no lock. `cluster/run_state/lock_file.py` explains how abandoned locks are recognized.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cluster.core.errors import RefusedError
from cluster.run_state.lock_file import STALE_AFTER_S, Holder, LockFile, LockHeldError


class RunInUseError(RefusedError):
    """Another process uses the directory, or it cannot be locked. The message has one line with the process and the
    remedy, or with the reason."""


class RunDirectoryLostError(RuntimeError):
    """The run directory was deleted or moved while a run was writing it, or another process has taken it over."""


class RunLock:
    """The lock of a directory, which this process holds."""

    def __init__(self, directory: Path, files: Sequence[LockFile]) -> None:
        self._directory = directory
        self._files = files

    def check(self) -> None:
        """Make sure that the lock is still held. Call it before each write that must not meet another writer's.

        Raises:
            RunDirectoryLostError: if another process has taken the lock over, or the directory around it is gone.
        """
        for file in self._files:
            try:
                file.check()
            except LockHeldError as error:
                raise RunDirectoryLostError(
                    f"{self._directory} no longer belongs to this process: {error}. Nothing more was written to it"
                ) from error


_held: dict[Path, RunLock] = {}
"""The locks that this process holds, by the path of the lock file."""


@contextmanager
def run_lock(directory: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[RunLock]:
    """Hold the lock of `directory` while the block runs. The directory need not exist.

    A block inside of another one for the same directory uses its lock.

    Args:
        say: Told once if it takes up to a minute to find out whether a holder on another machine lives.

    Raises:
        RunInUseError: if another live process holds the lock, it cannot be written, or `directory` is a link that leads
            nowhere. Nothing is made at its end.
    """
    if directory.is_symlink() and not directory.exists():
        raise RunInUseError(
            f"{directory} cannot be locked: this is a symbolic link that leads nowhere; move it away, or choose "
            "another name"
        )
    paths = lock_paths(directory)
    if (outer := _held.get(paths[0])) is not None:
        yield outer
        return
    with ExitStack() as stack:
        lock = RunLock(directory, [_taken(directory, path, say, stack) for path in paths])
        _held[paths[0]] = lock
        stack.callback(_held.pop, paths[0])
        yield lock


def _taken(directory: Path, path: Path, say: Callable[[str], None], stack: ExitStack) -> LockFile:
    """Take one of the locks of `directory`, until `stack` ends."""

    def waiting(holder: Holder | None) -> None:
        say(
            f"{directory} was locked by {holder or 'another process'}: waiting up to {STALE_AFTER_S:g} s for a sign "
            "of life"
        )

    try:
        file = LockFile.take(path, waiting)
    except LockHeldError as error:
        raise RunInUseError(
            f"{directory} is in use by {error}: wait until it has ended or stop it, or choose another name"
        ) from error
    except OSError as error:
        raise RunInUseError(
            f"{directory} cannot be locked: {error.filename or path}: {error.strerror or error}"
        ) from error
    stack.callback(file.release)
    return file


def lock_paths(directory: Path) -> list[Path]:
    """Return the paths of the locks of a directory: one, or two if the directory is a symbolic link, because it can be
    reached by both of its names."""
    absolute = Path(os.path.abspath(directory))
    # Unlike `Path.resolve`, `realpath` accepts links that lead in a circle.
    by_name = Path(os.path.realpath(absolute.parent)) / absolute.name
    by_target = Path(os.path.realpath(absolute))
    return [path.with_name(f".{path.name}.lock") for path in dict.fromkeys((by_name, by_target))]
