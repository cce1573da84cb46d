"""A control group for one verifier process and its descendants, where the machine lets this process make one.

The kernel then enforces the memory limit for all of them together, shared memory included, and knows all members,
wherever they have gone. Most containers do not allow it; then the keeper and the sandbox find the processes themselves.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

REMOVAL_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class _Kind:
    """The file names of one version of control groups."""

    limit: str
    swap_limit: tuple[str, str]
    """The file of a limit with swap, and its value; empty for that of the memory."""
    events: str


_VERSION_1 = _Kind("memory.limit_in_bytes", ("memory.memsw.limit_in_bytes", ""), "memory.oom_control")
_VERSION_2 = _Kind("memory.max", ("memory.swap.max", "0"), "memory.events")


@dataclass(frozen=True, slots=True)
class Cgroup:
    """Usage:

    group = Cgroup.create("hpo-verifier-1", memory_bytes=2**30)    # None if it is not possible
    group.join()                                                   # in the process to limit
    group.members()
    group.remove()                                                 # when it has no members any more
    """

    path: Path

    @classmethod
    def create(cls, name: str, memory_bytes: int) -> Cgroup | None:
        """Make a group below that of this process, with a memory limit. Return None where that is not possible."""
        for parent, kind in _parents():
            group = cls(parent / name)
            try:
                group.path.mkdir()
            except OSError:
                continue
            try:
                (group.path / kind.limit).write_text(str(memory_bytes))
            except OSError:  # the memory of this hierarchy is not controlled
                group.remove()
                continue
            file, value = kind.swap_limit
            with contextlib.suppress(OSError):  # not every kernel accounts for swap
                (group.path / file).write_text(value or str(memory_bytes))
            return group
        return None

    def join(self) -> bool:
        """Move the calling process into the group. Return False if that is not possible."""
        try:
            (self.path / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            return False
        return True

    def members(self) -> set[int]:
        """Return the processes in the group."""
        try:
            return {int(line) for line in (self.path / "cgroup.procs").read_text().split()}
        except (OSError, ValueError):
            return set()

    def was_out_of_memory(self) -> bool:
        """Return True if the kernel has killed a member because of the memory limit."""
        for kind in (_VERSION_1, _VERSION_2):
            with contextlib.suppress(OSError):
                lines = (self.path / kind.events).read_text().splitlines()
                return any(line.startswith("oom_kill ") and line.split()[1] != "0" for line in lines)
        return False

    def remove(self) -> None:
        """Remove the group. The kernel may need a moment to let go of killed members."""
        deadline = time.monotonic() + REMOVAL_TIMEOUT_S
        while True:
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                if time.monotonic() > deadline:
                    return
                time.sleep(0.005)
            else:
                return


def remove_group(name: str) -> None:
    """Remove the group of a process that was killed, in each hierarchy. One with members stays."""
    for parent, _ in _parents():
        with contextlib.suppress(OSError):
            (parent / name).rmdir()


def _parents() -> list[tuple[Path, _Kind]]:
    """Return the directories of this process's groups that may control memory."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in groups:
        for _, mounted_at, kind, options, *_ in mounts:
            if kind == "cgroup2" and not controllers:
                found.append((Path(mounted_at) / path.lstrip("/"), _VERSION_2))
            elif kind == "cgroup" and controllers == "memory" and "memory" in options.split(","):
                found.append((Path(mounted_at) / path.lstrip("/"), _VERSION_1))
    return found
