"""The lock that a killed compilation leaves behind.

DeepSpeed compiles an operator at its first start on a machine, through torch, which keeps a file `lock` beside it
meanwhile. Who finds that file waits until it is gone, for ever if its owner was killed.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import psutil

from cluster.core import files

logger = logging.getLogger(__name__)

STALE_AFTER_S = 60.0
"""A lock that no process of this machine holds may be another machine's, if they share the folder. Compilation takes
less than this."""


def operator_folder() -> Path:
    """Where torch compiles the operator that DeepSpeed wants on CPU."""
    from torch.utils.cpp_extension import _get_build_directory

    return Path(_get_build_directory("deepspeed_shm_comm", verbose=False))


def remove_stale_lock(folder: Path, stale_after_s: float = STALE_AFTER_S) -> None:
    """Return when `folder` has no lock, or one whose owner is alive; a stale one is removed.

    It takes `stale_after_s` at most from the lock's creation.
    """
    lock = folder / "lock"
    while (age_s := _age_s(lock)) is not None and not _is_held(lock):
        if age_s > stale_after_s:
            _remove(lock, stale_after_s)
        else:
            logger.info("%s belongs to no process of this machine; waiting until it is surely stale", lock)
            time.sleep(min(5.0, stale_after_s - age_s + 0.1))


def _remove(lock: Path, stale_after_s: float) -> None:
    """One process at a time, and each looks again: after the first, the lock may be a new compilation's."""
    with open(lock.with_name("lock.removal"), "w") as guard:
        files.lock(guard)
        age_s = _age_s(lock)
        if age_s is not None and age_s > stale_after_s and not _is_held(lock):
            logger.warning(
                "removing %s, %.0f s old: the compilation that it was for has been killed", lock, age_s
            )
            lock.unlink(missing_ok=True)


def _age_s(lock: Path) -> float | None:
    try:
        return time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return None


def _is_held(lock: Path) -> bool:
    """Whether a process of this machine, as far as we may look, has the file open: torch keeps it so."""
    name = str(lock.resolve())
    for process in psutil.process_iter():
        try:
            descriptors = os.listdir(f"/proc/{process.pid}/fd")
            if any(os.readlink(f"/proc/{process.pid}/fd/{number}") == name for number in descriptors):
                return True
        except OSError:  # it ended, or is another user's
            continue
    return False
