"""Kills a verifier process and everything that it has started, wherever that hides."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

import psutil

TAG = "HPO_VERIFIER_PROCESS"
"""The environment variable by which what a process started is known when that process is gone."""
_ROUNDS = 50


def kill(process: subprocess.Popen[bytes], tag: str) -> None:
    """Kill `process`, the leader of its group whose environment holds `TAG=tag`, and wait for it."""
    killed: set[psutil.Process] = set()
    for _ in range(_ROUNDS):  # what starts processes while they are looked for is found in the next round
        # The process itself goes last: those whose parents die become its children, wherever else they hide.
        os.killpg(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        found = descendants(process.pid) if how_it_ended(process.pid) is None else _bearing(tag)
        if not (new := {child for child in found if _runs(child)} - killed):
            break
        for child in new:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        killed |= new
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def descendants(process_id: int) -> list[psutil.Process]:
    """All that a process has started and that is still there."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process_id).children(recursive=True)
    return []


def how_it_ended(process_id: int) -> str | None:
    """In words; None while it runs. The process, a child of ours, is not reaped, so that its id stays its own."""
    ended = os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    if ended.si_code == os.CLD_EXITED:
        return f"the verifier ended its process with exit code {ended.si_status}"
    return f"the verifier's process died of {signal.Signals(ended.si_status).name}"


def _bearing(tag: str) -> list[psutil.Process]:
    """The processes of this machine that inherited `tag`. Those of a dead parent cannot be found as its children."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(TAG) == tag:
                found.append(process)
    return found


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
