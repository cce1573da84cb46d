"""One supervision per run: `submit --supervise` holds a lock in the user's cache directory for as long as it watches.

The run directory may be out of reach from here, so the lock is not beside it. Supervisions that do not share a home
directory are kept apart by the job server: see `submit` in `cluster/commands/jobs/submission.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.core.config import RunConfig
from cluster.core.errors import RefusedError
from cluster.run_state.lock_file import LockFile, LockHeldError

FOLDER = Path("~/.cache/hpo-trainer/supervisions")


class SupervisedError(RefusedError):
    """Another process supervises the run, or the lock cannot be made. The message names the process."""


@contextmanager
def supervision_lock(address: str, config: RunConfig) -> Iterator[None]:
    """Hold the lock of the supervision of a run while the block runs.

    Args:
        address: The address of the job server. Clusters may have runs of the same name.

    Raises:
        SupervisedError: if another live process holds it, or it cannot be made.
    """
    directory = config.run_directory.expanduser().absolute()
    key = hashlib.sha256(f"{address} {directory}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    path = FOLDER.expanduser() / f"{config.name}-{key}.lock"
    try:
        lock = LockFile.take(path)
    except LockHeldError as error:
        raise SupervisedError(
            f"the run {config.name} is already supervised by {error}: wait until it has ended, or submit "
            "another run with name=NAME"
        ) from error
    except OSError as error:
        raise SupervisedError(
            f"the supervision cannot be locked: {error.filename or path}: {error.strerror or error}"
        ) from error
    try:
        yield
    finally:
        lock.release()
