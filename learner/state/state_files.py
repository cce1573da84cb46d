"""Files of a checkpoint: on the disk for good, and known by size and hash. Torch-free.

Whoever writes a file seals it, so that a large checkpoint is hashed where its parts were written, by all ranks at once,
and nobody reads all of it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or cannot be gone on from: says which, why and what to do, in one line."""


class CheckpointWriteError(CheckpointError):
    """A part of a checkpoint could not be written: a full disk, say. Says what and why."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file must be to be the one that was written."""

    size: int
    """Bytes."""
    sha256: str


def seal(file: Path) -> FileRecord:
    """Wait until a file is on the disk, and say what it is.

    Raises:
        OSError: it cannot be read or brought to the disk.
    """
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
    return record(file)


def record(file: Path) -> FileRecord:
    """A file as it is now.

    Raises:
        OSError: it cannot be read.
    """
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return FileRecord(stream.tell(), digest.hexdigest())


def why_not_written(error: Exception, directory: Path) -> str | None:
    """What keeps anybody from writing in `directory`, in one line; None if `error` is about something else.

    On a full disk torch raises a RuntimeError that says where in its file it was, and not why; a lost rank is a
    RuntimeError too. So the system is asked, with one more attempt.
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
