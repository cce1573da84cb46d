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


def reason(error: Exception, directory: Path) -> str:
    """Why something could not be written in `directory`, in one line.

    On a full disk torch says where in its file it was, and not why: what the system says of one more attempt is
    clearer.
    """
    if not isinstance(error, OSError):
        try:
            with tempfile.TemporaryFile(dir=directory) as attempt:
                attempt.write(bytes(2**20))
                attempt.flush()
                os.fsync(attempt.fileno())
        except OSError as refusal:
            error = refusal
    return (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
