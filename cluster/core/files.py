"""Files and directories that appear whole or not at all, files that grow, and the locks between processes.

A crash at any moment leaves the old content or the new content under a name, never a part of it. Every other module
uses these functions instead of `os.replace` and `fcntl`. None of them waits for a pipe: see also
`cluster/core/reading.py`, which has the functions that read.
"""

from __future__ import annotations

import fcntl
import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import IO, Any, TextIO, cast

from cluster.core.errors import RefusedError
from cluster.core.reading import kind_of, open_own, open_regular, shown_path
from cluster.core.text import utf8_text

_LOCK = "lock"
"""The file in a scratch directory that its process keeps locked for as long as it lives."""


def write_atomically(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Write `content` to a temporary file beside `path`, then rename it to `path`. Text is written as UTF-8, see
    `utf8_text`.

    A reader sees the old content or the new content. If writing fails, the old file stays and the temporary file is
    deleted. A killed process may leave its temporary file, named `.NAME.XXXXXXXX.partial`. A pipe, a socket, a device
    or a link at `path` is replaced and never opened.

    Args:
        durable: Whether the content is flushed to the disk before the rename, so that the same holds after a power
            failure.

    Raises:
        RefusedError: if `path` is a directory.
        OSError: if the file cannot be written.
    """
    data = utf8_text(content).encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except IsADirectoryError as error:
        temporary.unlink(missing_ok=True)
        raise RefusedError(
            f"{shown_path(path)}: this is a directory, and a file is to be written there; move it away"
        ) from error
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno is not None:
            error.filename, error.filename2 = os.fspath(path), None  # the name that the user knows
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def open_to_append(path: Path, *, errors: str = "strict") -> TextIO:
    """Open the regular file at `path` to append UTF-8 text, without waiting. A file that does not exist is made.

    Args:
        errors: The treatment of characters that UTF-8 lacks, as for `open`.

    Raises:
        RefusedError: if it is not a regular file, or cannot be written.
        OSError: if its directory does not exist.
    """
    descriptor = open_regular(path, flags=os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    return cast("TextIO", os.fdopen(descriptor, "a", encoding="utf-8", errors=errors))


def refuse_obstacles(
    root: Path, directories: Iterable[str], files: Iterable[str], grow: Iterable[str], remedy: str
) -> None:
    """Refuse if something else is in the place of a directory or a file that a command is going to write, before the
    command has started anything. What does not exist is no obstacle.

    Args:
        root: The directory to which the names are relative.
        directories: The names of directories, the outer ones first.
        files: The names of files, with `*` for any text. They may be replaced as a whole.
        grow: The same for files to which lines are appended. This process must be able to read and write them.
        remedy: The end of the message.

    Raises:
        RefusedError: if there is an obstacle. The message names it.
    """
    for name in directories:
        _refuse_obstacle(root / name, remedy, directory=True, access=os.R_OK | os.W_OK | os.X_OK)
    for names, access in ((files, 0), (grow, os.R_OK | os.W_OK)):
        for name in names:
            for file in sorted(root.glob(name)) if "*" in name else [root / name]:
                _refuse_obstacle(file, remedy, directory=False, access=access)


def _refuse_obstacle(path: Path, remedy: str, *, directory: bool, access: int) -> None:
    try:
        kind = kind_of(path.stat()) or "a file"
        if kind != ("a directory" if directory else "a file"):
            fault = f"this is {kind}, and not {'a directory' if directory else 'a file'}"
        elif access and not os.access(path, access):
            fault = "this process may not read and write it"
        else:
            return
    except FileNotFoundError:
        if not path.is_symlink():
            return
        fault = "this is a symbolic link that leads nowhere"
    except (OSError, ValueError) as error:  # a circle of links, a name that is too long, a null character
        fault = f"it cannot be examined ({getattr(error, 'strerror', None) or error})"
    raise RefusedError(f"{shown_path(path)}: {fault}; {remedy}")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `path` when the block succeeds, and is deleted when the block fails.

    The directory is made beside `path`, in a scratch directory that this process keeps locked. A killed process cannot
    delete its scratch directory; the next call for the same parent directory does. An empty directory at `path` is
    replaced.

    Raises:
        FileExistsError: if `path` is a directory with content when the block ends. It stays as it is.
        OSError: if the directory cannot be made or renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _delete_abandoned_scratch(path.parent)
    scratch = Path(tempfile.mkdtemp(prefix=f"{_scratch_prefix()}{path.name}-", dir=path.parent))
    with tempfile.NamedTemporaryFile(dir=scratch, delete=False) as lock:
        try:
            try_lock(lock)
            os.rename(lock.name, scratch / _LOCK)  # the lock is held before another process can find it
            directory = scratch / "content"
            directory.mkdir()
            yield directory
            try:
                os.rename(directory, path)
            except OSError as error:
                if path.is_dir():
                    raise FileExistsError(f"{path} was created by another process in the meantime") from error
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


class LockAttempt(Enum):
    """The result of an attempt to lock a file."""

    TAKEN = "taken"
    BUSY = "another process holds a lock that excludes this one"
    UNSUPPORTED = "the file system has no locks"


def attempt_lock(file: IO[Any] | int, *, shared: bool = False) -> LockAttempt:
    """Try to take the exclusive lock of `file`, or with `shared` one that several may hold, without waiting.

    Closing the file, or the end of the process, releases it. Some shared file systems do not show locks to other
    machines: there, `TAKEN` says nothing about them.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return LockAttempt.BUSY
    except OSError:
        return LockAttempt.UNSUPPORTED
    return LockAttempt.TAKEN


def try_lock(file: IO[Any] | int, *, shared: bool = False) -> bool:
    """Do the same as `attempt_lock`, and return whether the lock was taken."""
    return attempt_lock(file, shared=shared) is LockAttempt.TAKEN


def is_at(file: IO[Any], path: Path) -> bool:
    """Return whether `path` names the open `file`, and not another one that has replaced it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def lock(file: IO[Any] | int, *, shared: bool = False) -> None:
    """Wait for the lock of `file`, and take it: the exclusive lock, or with `shared` one that several may hold."""
    fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


def _scratch_prefix() -> str:
    """Return a prefix that names this machine: some shared file systems do not show locks to other machines."""
    return f".building-{platform.node()}-"


def _delete_abandoned_scratch(parent: Path) -> None:
    """Delete the scratch directories of killed processes of this machine: their locks are free."""
    for scratch in parent.glob(f"{_scratch_prefix()}*"):
        file = open_own(scratch / _LOCK, flags=os.O_RDWR)  # NFS locks only files that are open for writing
        if file is None:  # just begun or just deleted; or another user's
            continue
        with file:
            if try_lock(file):
                shutil.rmtree(scratch, ignore_errors=True)
