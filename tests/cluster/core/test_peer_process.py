"""A process that ends is seen to end, also when it is killed and its parent has not noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from cluster.core.peer_process import PeerProcess, own_process


def sleeping() -> tuple[subprocess.Popen[bytes], str]:
    """Return a new process and its identity."""
    process = subprocess.Popen(["sleep", "600"])
    return process, f"{own_process().rpartition('/')[0]}/{process.pid}"


def test_a_killed_process_has_ended_before_its_parent_notices() -> None:
    process, identity = sleeping()
    peer = PeerProcess(identity)
    assert not peer.ended
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60.0
    while not peer.ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert peer.ended
    process.wait()
    assert peer.ended
    peer.close()


def test_a_process_that_is_gone_already_has_ended() -> None:
    process, identity = sleeping()
    process.kill()
    process.wait()
    assert PeerProcess(identity).ended


def test_a_process_of_another_container_is_never_seen_to_end() -> None:
    """Its number may belong to another process here, or to no process."""
    peer = PeerProcess("pid:[1]/4194304")
    assert not peer.ended
    peer.close()


def test_watching_ends_without_a_trace() -> None:
    before = len(os.listdir("/proc/self/fd"))
    peer = PeerProcess(own_process())
    assert not peer.ended
    peer.close()
    peer.close()
    assert len(os.listdir("/proc/self/fd")) == before
