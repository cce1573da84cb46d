"""Files and directories that appear whole or not at all, and the locks between processes.

A crash at any moment leaves the old content or the new content under a name, never a part of it. Every other module
uses these functions instead of `os.replace` and `fcntl`.
"""

from __future__ import annotations

import fcntl
import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import IO, Any

from cluster.core.reading import open_own
from cluster.core.text import utf8_text

_LOCK = "lock"
"""The file in a scratch directory that its process keeps locked for as long as it lives."""


def write_atomically(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Write `content` to a temporary file beside `path`, then rename it to `path`. Text is written as UTF-8, see
    `utf8_text`.

    A reader sees the old content or the new content. If writing fails, the old file stays and the temporary file is
    deleted. A killed process may leave its temporary file, named `.NAME.XXXXXXXX.partial`.

    Args:
        durable: Whether the content is flushed to the disk before the rename, so that the same holds after a power
            failure.

    Raises:
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
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
