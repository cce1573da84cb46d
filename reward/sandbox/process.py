"""One verifier process, seen from its parent: start it, send requests, read replies, kill it and its descendants."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from cluster.core.secrets import verifier_environment
from reward.sandbox.channel import Progress, ProtocolError, ReplyParser, frame
from reward.sandbox.spec import Limits, RunnerSpec

TAG = "HPO_VERIFIER_PROCESS"
"""The environment variable that identifies the descendants of a process after that process is gone."""
_KILL_ROUNDS = 50
_LAST_REPLIES_S = 0.1


class ProcessFailedError(RuntimeError):
    """The process has ended, or has sent an invalid reply. It cannot be used any more."""


class VerifierProcess:
    """Usage, within an event loop:

    process = VerifierProcess(spec, limits)
    try:
        batched = await process.ready()
        process.send([(problem, response), …])
        reply = await process.reply(within_s=0.1)    # repeat until a reply says "done"
    finally:
        process.kill()
    """

    def __init__(self, spec: RunnerSpec, limits: Limits) -> None:
        self._limits = limits
        self._serial = 0
        self._tag = uuid.uuid4().hex
        self._received: asyncio.Queue[tuple[int, dict[str, Any]] | ProcessFailedError] = asyncio.Queue()
        self.progress, progress_fd = Progress.create()
        ours, theirs = socket.socketpair()
        # -P: a file in the working directory must not shadow a module of this project.
        command = [sys.executable, "-P", "-m", "reward.sandbox.child", str(theirs.fileno()), str(progress_fd)]
        try:
            self._process = subprocess.Popen(
                command,
                env=_environment(self._tag),
                pass_fds=(theirs.fileno(), progress_fd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a process group that can be killed as one, and that no Ctrl-C reaches
            )
        finally:
            theirs.close()
            os.close(progress_fd)
        self._socket = ours
        self._exit_fd = os.pidfd_open(self._process.pid)
        self._transport: asyncio.WriteTransport | None = None
        self._first_request = pickle.dumps((spec, limits.memory_mib))

    async def ready(self) -> bool:
        """Wait until the runner is made. Return True if it takes batches.

        Raises:
            ProcessFailedError: if the runner cannot be made; the message says why.
        """
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_unix_connection(
            lambda: _Listener(self._received, self._ended), sock=self._socket
        )
        # A fork of the verifier may hold the socket open after the process itself is gone.
        loop.add_reader(self._exit_fd, self._ended)
        self._send(self._first_request)
        try:
            reply = await self.reply(self._limits.start_timeout_s)
        except TimeoutError:
            raise ProcessFailedError(
                f"the verifier was not ready after {self._limits.start_timeout_s:g} s"
            ) from None
        if "failed" in reply:
            raise ProcessFailedError(str(reply["failed"]))
        return bool(reply.get("ready"))

    def send(self, items: Sequence[tuple[Any, str]]) -> None:
        """Send (problem, response) pairs to be scored. Only one batch may be in progress.

        Raises:
            ProcessFailedError: if a problem cannot be pickled.
        """
        self.progress.reset(len(items), time.monotonic_ns())
        try:
            self._send(pickle.dumps(items))
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            raise ProcessFailedError(f"a problem cannot be sent to a verifier process: {error}") from None

    async def reply(self, within_s: float) -> dict[str, Any]:
        """Return the next reply to the latest request.

        Raises:
            TimeoutError: if no reply arrives in time.
            ProcessFailedError: if no reply can arrive any more.
        """
        async with asyncio.timeout(within_s):
            received = await self._received.get()
        if isinstance(received, ProcessFailedError):
            raise received
        serial, reply = received
        if serial != self._serial:
            raise ProcessFailedError("something was written into the channel of the verifier process")
        return reply

    def count_children(self) -> int:
        """Return the number of descendants of the process that still exist."""
        return len(_descendants(self._process.pid))

    def kill(self) -> None:
        """Kill the process and its descendants, and wait for it. May be called again."""
        if self._process.returncode is not None:
            return
        _kill_with_descendants(self._process, self._tag)
        asyncio.get_running_loop().remove_reader(self._exit_fd)
        os.close(self._exit_fd)
        if self._transport is not None:
            self._transport.abort()
        self._socket.close()

    def _send(self, body: bytes) -> None:
        assert self._transport is not None, "not ready"
        self._serial += 1
        self._transport.write(frame(self._serial, body))

    def _ended(self) -> None:
        """Report the end of the process or of its channel after a delay, in which last replies and both ends arrive."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._exit_fd)
        loop.call_later(_LAST_REPLIES_S, self._report_end)

    def _report_end(self) -> None:
        if self._process.returncode is None:  # otherwise it was killed in the meantime, and no call waits
            how = _how_it_ended(self._process.pid) or "the verifier closed the channel of its process"
            self._received.put_nowait(ProcessFailedError(how))


class _Listener(asyncio.Protocol):
    """Puts the replies that arrive into a queue."""

    def __init__(self, received: asyncio.Queue[Any], ended: Callable[[], None]) -> None:
        self._received = received
        self._ended = ended
        self._parser = ReplyParser()

    def data_received(self, data: bytes) -> None:
        try:
            for reply in self._parser.feed(data):
                self._received.put_nowait(reply)
        except ProtocolError as error:
            self._received.put_nowait(ProcessFailedError(f"the verifier process sent {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended()


def _environment(tag: str) -> dict[str, str]:
    """Return this process's environment without its secrets, with its search path, and with one thread for numpy."""
    ours = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        TAG: tag,
    }
    return {**verifier_environment(os.environ), **ours}


# --- killing a process with all its descendants


def _kill_with_descendants(process: subprocess.Popen[bytes], tag: str) -> None:
    """Kill `process`, the leader of its group whose environment holds `TAG=tag`, and wait for it."""
    killed: set[psutil.Process] = set()
    for _ in range(_KILL_ROUNDS):  # a process that is started during one round is found in the next
        # The process itself is killed last: it adopts descendants whose parents die, so they can still be found.
        os.killpg(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        found = _descendants(process.pid) if _how_it_ended(process.pid) is None else _with_tag(tag)
        if not (new := {child for child in found if _is_running(child)} - killed):
            break
        for child in new:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        killed |= new
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _descendants(process_id: int) -> list[psutil.Process]:
    """Return all existing descendants of a process."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process_id).children(recursive=True)
    return []


def _how_it_ended(process_id: int) -> str | None:
    """Return how a child process ended, in words, or None while it runs.

    The process is not reaped, so its id cannot be reused.
    """
    ended = os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    if ended.si_code == os.CLD_EXITED:
        return f"the verifier ended its process with exit code {ended.si_status}"
    return f"the verifier's process died of {signal.Signals(ended.si_status).name}"


def _with_tag(tag: str) -> list[psutil.Process]:
    """Return the processes of this machine that inherited `tag`.

    Descendants of a dead process cannot be found as its children.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(TAG) == tag:
                found.append(process)
    return found


def _is_running(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
