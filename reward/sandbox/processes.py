"""The processes below a process: found, measured and killed through `/proc`. It needs the standard library alone."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

SWEEP_TIMEOUT_S = 10.0
SWEEP_PAUSE_S = 0.002
_RLIMIT_LOCKS = 10
"""A limit that the kernel has not enforced since Linux 2.4, and which every process still inherits from its parent."""
_SMALLEST_RANGE = 2**32
_SHARED_MEMORY = ("/memfd:", "/dev/shm/", "/dev/zero", "/SYSV")
_COUNTED = (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:")


def descendants(process_id: int, *, ended: bool = False) -> set[int]:
    """Return the descendants of a process that run, and with `ended` also those that wait to be reaped."""
    children = defaultdict[int, list[int]](list)
    for entry in _process_ids():
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent = _read(f"/proc/{entry}/stat").rpartition(b")")[2].split()[:2]
            children[int(parent)].append(entry if state not in (b"Z", b"X") else -entry)
    found, waiting = set[int](), [process_id]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            waiting.append(abs(child))
            if child > 0 or ended:
                found.add(abs(child))
    return found


def with_environment(entry: bytes) -> set[int]:
    """Return the processes of this machine whose environment has `entry`, as they were started."""
    found = set()
    for process_id in _process_ids():
        with contextlib.suppress(OSError):
            if entry in _read(f"/proc/{process_id}/environ").split(b"\0"):
                found.add(process_id)
    return found - {os.getpid()}


def set_mark(tag: str) -> None:
    """Mark this process and all its later descendants with `tag`, in hexadecimal digits.

    Unlike a variable, a session or a parent, the mark does not get lost when a program is started, whatever its
    arguments: it is the limit of file locks. A kernel that refuses to set it leaves the processes without a mark.
    """
    if (number := _mark(tag)) is not None:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(_RLIMIT_LOCKS, (number, number))


def with_mark(tag: str) -> set[int]:
    """Return the processes of this machine that run and have the mark of `tag`."""
    found, number = set(), _mark(tag)
    for process_id in _process_ids() if number is not None else ():
        with contextlib.suppress(OSError, IndexError):
            if resource.prlimit(process_id, _RLIMIT_LOCKS) == (number, number):
                state = _read(f"/proc/{process_id}/stat").rpartition(b")")[2].split()[0]
                if state not in (b"Z", b"X"):
                    found.add(process_id)
    return found - {os.getpid()}


def _mark(tag: str) -> int | None:
    """Return the number for `tag`, which this process may set; None if too few numbers are left for different ones."""
    most = resource.getrlimit(_RLIMIT_LOCKS)[1]
    if most == resource.RLIM_INFINITY:
        most = 2**62
    return int(tag, 16) % most if most >= _SMALLEST_RANGE else None


def memory_bytes(process_ids: Iterable[int]) -> int:
    """Return the memory of several processes together, without files on disk.

    Memory that they share counts once. Shared memory counts if it is mapped or open: the larger one of the two sums,
    because the same memory may be both.
    """
    private = mapped = 0
    opened: dict[tuple[int, int], int] = {}
    for process_id in process_ids:
        with contextlib.suppress(OSError, ValueError):
            for line in _read(f"/proc/{process_id}/smaps_rollup").splitlines():
                if line.startswith(_COUNTED):
                    size = int(line.split()[1]) * 1024
                    if line.startswith(b"Pss_Shmem"):
                        mapped += size
                    else:
                        private += size
        with contextlib.suppress(OSError):
            opened |= _open_shared_memory(process_id)
    return private + max(mapped, sum(opened.values()))


def sweep(find: Callable[[], set[int]]) -> None:
    """Kill all processes that `find` returns, until it returns none.

    They are stopped first, so that those that start others faster than they are found do not escape.
    """
    deadline, stopped = time.monotonic() + SWEEP_TIMEOUT_S, set[int]()
    while time.monotonic() < deadline:
        found = find()
        if new := found - stopped:
            stopped |= new
            send(signal.SIGSTOP, new)
            continue
        if not found:
            return
        send(signal.SIGKILL, found)
        time.sleep(SWEEP_PAUSE_S)


def send(number: signal.Signals, process_ids: Iterable[int]) -> None:
    """Send a signal to processes, some of which may be gone."""
    for process_id in process_ids:
        with contextlib.suppress(OSError):
            os.kill(process_id, number)


def reap() -> list[tuple[int, int]]:
    """Return the ids and wait statuses of the children of this process that have ended."""
    ended = []
    with contextlib.suppress(ChildProcessError):
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append(child)
    return ended


def how_it_ended(status: int) -> str:
    """Return how the verifier's process ended, in words, from its wait status."""
    if os.WIFEXITED(status):
        return f"the verifier ended its process with exit code {os.WEXITSTATUS(status)}"
    return f"the verifier's process died of {signal_name(os.WTERMSIG(status))}"


def signal_name(number: int) -> str:
    """Return the name of a signal. The real-time signals between the first and the last one have none of their own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        after = number - signal.SIGRTMIN
        return f"SIGRTMIN+{after}" if 0 < after <= signal.SIGRTMAX - signal.SIGRTMIN else f"signal {number}"


def _process_ids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(fd, 2**16):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _open_shared_memory(process_id: int) -> dict[tuple[int, int], int]:
    """Return the sizes in bytes of the files in shared memory that a process has open, by device and inode."""
    found = {}
    for fd in os.listdir(f"/proc/{process_id}/fd"):
        path = f"/proc/{process_id}/fd/{fd}"
        with contextlib.suppress(OSError):
            if os.readlink(path).startswith(_SHARED_MEMORY):
                status = os.stat(path)
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return found
