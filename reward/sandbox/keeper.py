"""The keeper of one verifier process:
`python -m reward.sandbox.keeper MODULE SOCKET_FD PROGRESS_FD PARENT_ID TAG CGROUP`.

    sandbox (process.py) ─▶ keeper ─▶ verifier process (child.py) ─▶ whatever the verifier starts

It forks the verifier process and sleeps until that ends, until the sandbox asks it to end, or until the sandbox's own
process is gone. Then it kills everything below it: as a subreaper it inherits every process whose parent has ended, so
none can escape by leaving its session or its parent. If the keeper itself is killed, the sandbox finds them by the mark
that it has set. Last it removes the temporary directory of the verifier.

It imports next to nothing before the fork, because there is one keeper for each verifier process.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import signal
import sys
from importlib import import_module
from pathlib import Path

from reward.sandbox.cgroup import Cgroup
from reward.sandbox.processes import descendants, reap, set_mark, sweep

PROGRESS_NUMBERS = 6
EXIT_STATUS, OUT_OF_MEMORY = 4, 5
"""The places of the keeper's numbers among those of `channel.Progress`."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM}


def main(module: str, socket_fd: int, progress_fd: int, parent_id: int, cgroup: Cgroup | None) -> None:
    """Fork the process that runs `module`, and end with it or with the parent."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    die_with_parent(parent_id, signal.SIGTERM)
    keeper_id = os.getpid()
    verifier_id = os.fork()
    if not verifier_id:
        _run_verifier(module, socket_fd, progress_fd, keeper_id, cgroup)
        return
    os.close(socket_fd)
    numbers = memoryview(mmap.mmap(progress_fd, PROGRESS_NUMBERS * 8)).cast("q")
    status = _wait(verifier_id)
    numbers[OUT_OF_MEMORY] = cgroup is not None and cgroup.was_out_of_memory()
    numbers[EXIT_STATUS] = status + 1  # 0 stands for a process that runs

    def below() -> set[int]:
        reap()
        return descendants(keeper_id) | (cgroup.members() if cgroup else set())

    sweep(below)
    if cgroup is not None:
        cgroup.remove()
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
    os._exit(0)


def die_with_parent(parent_id: int, number: signal.Signals) -> None:
    """Get the signal when the parent process ends, and inherit descendants whose parents end."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, number)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent_id:
        os._exit(1)  # it has ended already


def _run_verifier(
    module: str, socket_fd: int, progress_fd: int, keeper_id: int, cgroup: Cgroup | None
) -> None:
    os.setsid()  # a verifier that kills its process group must not kill the keeper
    die_with_parent(keeper_id, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if cgroup is not None:
        cgroup.join()
    import_module(module).main(socket_fd, progress_fd)  # after the fork: it is large


def _wait(verifier_id: int) -> int:
    """Return the wait status of the verifier process when it has ended; that of SIGKILL if it is to be killed."""
    while True:
        for process_id, status in reap():
            if process_id == verifier_id:
                return status
        if signal.sigwait(_SIGNALS) == signal.SIGTERM:
            return int(signal.SIGKILL)


if __name__ == "__main__":
    name, *numbers, tag, group = sys.argv[1:]
    socket, progress, parent = map(int, numbers)
    set_mark(tag)
    main(name, socket, progress, parent, Cgroup(Path(group)) if group else None)
