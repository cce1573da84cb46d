"""The files of a checkpoint: written durably, and identified by size and hash. Torch-free.

The process that writes a file also seals it. All ranks hash their own parts of a large checkpoint at the same time, and
no process has to read all of it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cluster.core.reading import open_regular


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or resumed from. The message names it, the reason and the remedy in one line."""


class CheckpointWriteError(CheckpointError):
    """A part of a checkpoint could not be written, for example because the disk is full."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """The size and the hash of a file when it was written."""

    size: int
    """The size in bytes."""
    sha256: str


def seal(file: Path) -> FileRecord:
    """Wait until a file is on disk, and return its record.

    Raises:
        OSError: if the file cannot be read or synchronized.
    """
    with os.fdopen(open_regular(file), "rb") as stream:
        os.fsync(stream.fileno())
    return record(file)


def record(file: Path) -> FileRecord:
    """Return the record of a file in its present state.

    Raises:
        OSError, RefusedError: if the file cannot be read, or is not a regular file.
    """
    with os.fdopen(open_regular(file), "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return FileRecord(stream.tell(), digest.hexdigest())


def why_not_written(error: Exception, directory: Path) -> str | None:
    """Return the reason why `directory` cannot be written, in one line, or None if `error` has another cause.

    On a full disk torch raises a RuntimeError with a position in its file but without the reason, and a lost rank is a
    RuntimeError too. Therefore one more attempt to write asks the operating system.
    """
    if not isinstance(error, OSError):
        try:
            with tempfile.TemporaryFile(dir=directory) as attempt:
                attempt.write(bytes(2**20))
                attempt.flush()
                os.fsync(attempt.fileno())
        except OSError as refusal:
            error = refusal
        else:
            return None
    return error.strerror or " ".join(str(error).split())
