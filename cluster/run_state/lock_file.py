"""A file whose existence is a lock, on local and on shared storage.

Creating the file is what takes the lock: a file system lets one process alone create a name, also over NFS. The rest of
this module finds out whether an existing file belongs to a live process. It has three signs of life:

sign                      who sees it
file lock (flock)         processes of the same machine; of other machines only on some file systems
record of the holder      everyone: machine, process with its start time, command
time of last change       everyone: a thread of the holder touches the file every few seconds

On the holder's machine the record decides, so a killed holder is recognized at once. On another machine the time of
last change decides. It is compared with the time of a file that is written for this purpose, because the clocks of
machines differ. Ray-free, torch-free.
"""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import secrets
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import IO, Annotated, Self

from pydantic import Field, TypeAdapter

from cluster.core import ending
from cluster.core.files import LockAttempt, attempt_lock, is_at
from cluster.core.text import plain_text

TOUCH_S = 3.0
"""The interval at which a holder touches its file."""
STALE_AFTER_S = 60.0
"""The age from which an untouched file counts as abandoned on other machines."""
CONFIRM_S = 8.0
"""The time for which a file must stay untouched while it is watched, however old it is: a clock may have been set."""
PATIENCE_S = 5.0
"""The longest wait for a process that only examines the file, which takes milliseconds."""
LONGEST_WAIT_S = 3 * STALE_AFTER_S
"""The longest wait for a lock that many others want, or whose file system does not behave as expected."""
TOLD_AFTER_S = 1.0
"""The time after which a waiting caller is told why."""
_POLL_S = 0.1
_LATEST_S = 253_402_300_799
"""The last second of the year 9999, which is the last one that has a date."""


class LockHeldError(RuntimeError):
    """Another live process holds the lock. The message names it."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lock, as its file records it."""

    host: str
    boot: str
    """The id of the machine's present start, which differs between machines and after a restart."""
    namespace: str
    """The process namespace: a process id means the same only in the same one."""
    process: int
    started: str
    """The start time of the process, because a process id is used again."""
    command: str
    since: Annotated[float, Field(ge=0, le=_LATEST_S)]

    @staticmethod
    def present() -> Holder:
        """Describe this process."""
        process, (boot, namespace) = os.getpid(), _machine()
        started = _started(process) or ""
        return Holder(platform.node(), boot, namespace, process, started, _command(), time.time())

    @staticmethod
    def read(file: IO[str]) -> Holder | None:
        """Read the record of a file; None if it has no valid one."""
        try:
            file.seek(0)
            return _HOLDER.validate_json(file.read(), strict=True)
        except (ValueError, OSError):
            return None

    @property
    def is_alive(self) -> bool | None:
        """Whether the process lives; None if this process cannot see that."""
        if (self.boot, self.namespace) != _machine():
            return None
        return _started(self.process) == self.started

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return plain_text(f"`{self.command}` (process {self.process} on {self.host}, since {since})")


_HOLDER = TypeAdapter(Holder)


class LockFile:
    """The lock of this process: a file that exists until `release`, or until the process ends.

    lock = LockFile.take(path, on_wait)
    try:
        lock.check()        # before each write: raises if another process has taken the lock over
    finally:
        lock.release()
    """

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path = path
        self._file = file
        self._mutex = threading.Lock()
        self._kept_at = _now_s()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_touching, name=f"lock {path.name}", daemon=True)
        self._thread.start()
        ending.at_forced_end(self._delete)

    @classmethod
    def take(cls, path: Path, on_wait: Callable[[Holder | None], None] = lambda _: None) -> Self:
        """Take the lock. A file that a dead process has left is replaced.

        Args:
            on_wait: Called once if it takes a while to find out whether a holder on another machine lives.

        Raises:
            LockHeldError: if another process holds it.
            OSError: if the file cannot be made or examined.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        examined = _Examination(path, on_wait)
        deadline = time.monotonic() + LONGEST_WAIT_S
        while (created := _create(path)) is None:
            verdict, holder = examined.look()
            if verdict is _Verdict.LIVES:
                raise LockHeldError(str(holder or f"another process, which has locked {path}"))
            if time.monotonic() > deadline:
                raise TimeoutError(f"the lock {path} could not be taken within {LONGEST_WAIT_S:g} s")
            time.sleep(_POLL_S if verdict is _Verdict.UNCLEAR else _POLL_S / 100)
        return cls(path, created)

    def check(self) -> None:
        """Make sure that this process still holds the lock. A file that was deleted is made again.

        Raises:
            LockHeldError: if another process has taken it, because this one was stopped for a long time, or if the file
                was deleted and cannot be made again.
        """
        with self._mutex:
            if self._is_kept():
                return
        raise LockHeldError(f"the lock {self.path} was deleted, or taken over by {_holder_at(self.path)}")

    def release(self) -> None:
        """Give the lock back. Only the file of this process is deleted."""
        self._released.set()
        self._thread.join(PATIENCE_S)
        with self._mutex:
            self._delete()
        self._file.close()
        ending.not_at_forced_end(self._delete)

    def _delete(self) -> None:
        with suppress(OSError):
            if is_at(self._file, self.path):
                self.path.unlink()

    def _keep_touching(self) -> None:
        while not self._released.wait(TOUCH_S):
            with self._mutex, suppress(OSError):  # storage that does not answer now may do so later
                if self._is_kept():
                    os.utime(self._file.fileno())

    def _is_kept(self) -> bool:
        """Return whether the file is that of this process. If there is no file, make it again, unless this process was
        stopped for so long that another one may have held the lock and given it back."""
        earlier, self._kept_at = self._kept_at, _now_s()
        if is_at(self._file, self.path):
            return True
        if self._kept_at - earlier < STALE_AFTER_S / 2:
            with suppress(OSError):
                if (created := _create(self.path)) is not None:
                    self._file.close()
                    self._file = created
                    return True
        self._kept_at = -math.inf  # it stays lost
        return False


def is_held(path: Path) -> bool:
    """Return whether a process may hold the lock of `path`, without waiting. A file that is certainly abandoned is
    deleted."""
    try:
        verdict, _ = _Examination(path, confirm_s=0).look()
    except OSError:
        return True
    return verdict is not _Verdict.GONE


class _Verdict(Enum):
    GONE = "the file does not exist, or no longer"
    LIVES = "the holder lives"
    UNCLEAR = "the holder may live"


class _Examination:
    """Finds out whether the holder of a file lives, by looking at it repeatedly."""

    def __init__(
        self,
        path: Path,
        on_wait: Callable[[Holder | None], None] = lambda _: None,
        confirm_s: float | None = None,
    ) -> None:
        self._path = path
        self._on_wait = on_wait
        self._confirm_s = CONFIRM_S if confirm_s is None else confirm_s
        self._seen: tuple[int, int] | None = None
        """The file that was seen first, and its time of last change then."""
        self._seen_since = 0.0
        self._told = False

    def look(self) -> tuple[_Verdict, Holder | None]:
        """Look at the file once. If it is abandoned, delete it.

        Raises:
            OSError: if it cannot be examined.
        """
        try:
            file = _opened(self._path)
        except FileNotFoundError:
            return _Verdict.GONE, None
        with file:
            attempt = attempt_lock(file)
            if not is_at(file, self._path):
                return _Verdict.GONE, None
            holder = Holder.read(file)
            verdict = self._verdict(file, attempt, holder)
            if verdict is _Verdict.GONE:
                _take_away(file, self._path)
        if verdict is _Verdict.UNCLEAR and not self._told and self._watched_s > TOLD_AFTER_S:
            self._told = True
            self._on_wait(holder)
        return verdict, holder

    def _verdict(self, file: IO[str], attempt: LockAttempt, holder: Holder | None) -> _Verdict:
        touched = self._is_touched(file)
        alive = holder.is_alive if holder else None
        if attempt is LockAttempt.BUSY:
            # The lock of a dead holder is busy for a moment while another process examines it.
            lives = alive or touched or self._watched_s > PATIENCE_S
            return _Verdict.LIVES if lives else _Verdict.UNCLEAR
        if alive is False:
            return _Verdict.GONE
        # A free lock does not show that the holder is gone: it may use another mount of the same storage.
        if touched or (alive and attempt is LockAttempt.UNSUPPORTED):
            return _Verdict.LIVES
        if self._watched_s < self._confirm_s:
            return _Verdict.UNCLEAR
        stale = self._watched_s > STALE_AFTER_S or _age_s(file, self._path) > STALE_AFTER_S
        return _Verdict.GONE if stale else _Verdict.UNCLEAR

    def _is_touched(self, file: IO[str]) -> bool:
        """Return whether the file was touched since the first look at it."""
        status = os.fstat(file.fileno())
        seen = (status.st_ino, status.st_mtime_ns)
        if self._seen is None or self._seen[0] != seen[0]:
            self._seen, self._seen_since = seen, time.monotonic()
        return self._seen != seen

    @property
    def _watched_s(self) -> float:
        return time.monotonic() - self._seen_since


def _create(path: Path) -> IO[str] | None:
    """Create the file, locked and with the record of this process; None if it exists.

    Raises:
        OSError: if the file cannot be made or written. It does not stay.
    """
    try:
        file = open(path, "x+", encoding="utf-8")
    except FileExistsError:
        return None
    try:
        deadline = time.monotonic() + PATIENCE_S
        while attempt_lock(file) is LockAttempt.BUSY:  # another process examines the new file
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {PATIENCE_S:g} s for the process that examines {path}")
            time.sleep(0.01)
        file.write(json.dumps(asdict(Holder.present())))
        file.flush()
        os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        file.close()
        raise
    return file


def _take_away(file: IO[str], path: Path) -> None:
    """Delete an abandoned file.

    On one machine the caller's lock of `file` keeps others from deleting it too. A process on another machine may have
    replaced it in the meantime; what was renamed is therefore looked at, and put back if it is another file.
    """
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.gone")
    with suppress(FileNotFoundError):
        path.rename(aside)
        if not is_at(file, aside):
            try:
                os.link(aside, path)
            except FileExistsError:
                pass  # its owner finds out at its next `check`
            except OSError:  # a file system without links
                aside.rename(path)
                return
        aside.unlink()


def _opened(path: Path) -> IO[str]:
    """Open the file for reading, and for writing if possible, because NFS locks only files that may be written. Links
    are not followed, and pipes are not waited for.

    Raises:
        OSError: if it is not a regular file, or cannot be opened.
    """
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file; move it away", str(path))
    flags = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.fdopen(os.open(path, os.O_RDWR | flags), "r+", encoding="utf-8")
    except PermissionError:
        return os.fdopen(os.open(path, os.O_RDONLY | flags), encoding="utf-8")


def _now_s() -> float:
    """Return a time that advances while the machine sleeps, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _holder_at(path: Path) -> str:
    try:
        with _opened(path) as file:
            return str(Holder.read(file) or "another process")
    except OSError:
        return "no one"


def _age_s(file: IO[str], path: Path) -> float:
    """Return the time since the file was touched, by the clock of the file system."""
    with tempfile.NamedTemporaryFile(prefix=f"{path.name}.", suffix=".clock", dir=path.parent) as probe:
        os.utime(probe.fileno())
        return os.fstat(probe.fileno()).st_mtime - os.fstat(file.fileno()).st_mtime


@cache
def _machine() -> tuple[str, str]:
    """Return the id of the machine's present start, and the process namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return boot, os.readlink("/proc/self/ns/pid")


def _started(process: int) -> str | None:
    """Return the start time of a process in clock ticks since the start of the machine; None if it does not live."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = status.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]


def _command() -> str:
    """Return the command without its settings, which may contain secrets."""
    words = [Path(sys.argv[0]).name, *(word for word in sys.argv[1:] if "=" not in word)]
    return " ".join(words)[:200]
