"""The temporary directory of a verifier process. A keeper deletes it at the end of its verifier.

If a whole node is killed, the keeper is too. So the next process on the node deletes what was left. A directory belongs
to a living process as long as it is locked: the kernel takes the lock away when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from cluster.core.files import lock, try_lock
from reward.sandbox.cgroup import remove_group

PREFIX = "hpo-verifier-"
"""The beginning of the names of the directory and of the control group, which are the same."""
YOUNG_S = 60.0
"""The age up to which a directory without a lock may be one that another process is about to lock."""


class VerifierDirectory:
    """A new temporary directory, locked while this process lives."""

    def __init__(self, tag: str) -> None:
        self.path = Path(tempfile.gettempdir()) / f"{PREFIX}{tag}"
        self.path.mkdir(mode=0o700)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        lock(self._fd, shared=True)

    @property
    def name(self) -> str:
        """The name of the directory, which that of the control group must equal."""
        return self.path.name

    def remove(self) -> None:
        """Delete the directory with all that is in it, and release the lock. A second call has no effect."""
        if self._fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._fd)
            self._fd = -1


def remove_abandoned() -> None:
    """Delete the directories and the control groups of processes that were killed together with their keepers.

    Directories of other users, and those that this user may not delete, stay.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is deleted meanwhile, or it is no directory
            _remove_unless_locked(path)


def _remove_unless_locked(path: Path) -> None:
    status = path.lstat()
    is_old = time.time() - status.st_mtime > YOUNG_S
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or not is_old:
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if try_lock(fd):
            remove_group(path.name)
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(fd)
