"""One verifier process, seen from the sandbox: start it with its keeper, send requests, read replies, end both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any, cast

from cluster.core.secrets import verifier_environment
from reward.sandbox.cgroup import Cgroup
from reward.sandbox.channel import Progress, ProtocolError, ReplyParser, RunnerFailedError, frame, read_start
from reward.sandbox.directory import VerifierDirectory, remove_abandoned
from reward.sandbox.processes import (
    descendants,
    how_it_ended,
    memory_bytes,
    sweep,
    with_environment,
    with_mark,
)
from reward.sandbox.spec import Limits, RunnerSpec

logger = logging.getLogger(__name__)

TAG = "HPO_VERIFIER_PROCESS"
"""The environment variable that identifies the descendants of a process after its keeper is gone. Those that were
started without it have the mark (`set_mark`)."""
MARGIN = 1.06
"""The factor by which the kernel's limit is above the configured one, so that a verifier gets a MemoryError first."""
MAX_UNREAD_REPLIES = 1000
KEEPER_TIMEOUT_S = 20.0
"""The time in which a keeper ends everything below it. It is longer than its own deadline for that."""
_LAST_REPLIES_S = 0.1
_LONGEST_WAIT_FOR_STATUS_S = 2.0
"""The time in which the keeper says how the process ended whose channel has ended."""


class ProcessFailedError(RuntimeError):
    """The process has ended, or has sent an invalid reply. It cannot be used any more."""


class LimitExceededError(ProcessFailedError):
    """The process and its descendants took more than a limit allows."""


class VerifierProcess:
    """Usage, within an event loop:

    process = VerifierProcess(spec, limits)
    try:
        batched = await process.ready()
        process.send(pack_request([(pickled_problem, response), …]), items)
        reply = await process.reply(within_s=0.1)    # repeat until a reply says "done"
    finally:
        await process.end()
    """

    def __init__(self, spec: RunnerSpec, limits: Limits) -> None:
        self._limits = limits
        self._memory_bytes = limits.memory_mib * 2**20
        self._serial = 0
        self._received: asyncio.Queue[tuple[int, dict[str, Any]] | ProcessFailedError] = asyncio.Queue()
        self._tag = uuid.uuid4().hex
        self._first_request = pickle.dumps((spec, limits.memory_mib))
        self._transport: asyncio.WriteTransport | None = None
        self._ended = False
        with contextlib.ExitStack() as undo:  # of whatever was made before something fails
            remove_abandoned()
            self._directory = VerifierDirectory(self._tag)
            undo.callback(self._directory.remove)
            self._cgroup = Cgroup.create(self._directory.name, int(MARGIN * self._memory_bytes))
            if self._cgroup is not None:
                undo.callback(self._cgroup.remove)
            self.progress, progress_fd = Progress.create()
            self._socket, theirs = socket.socketpair()
            undo.callback(self._socket.close)
            try:
                self._keeper = self._start(theirs.fileno(), progress_fd)
            finally:
                theirs.close()
                os.close(progress_fd)
            undo.callback(self._keeper.wait)
            undo.callback(self._keeper.terminate)
            self._exit_fd = os.pidfd_open(self._keeper.pid)
            undo.pop_all()

    def _start(self, socket_fd: int, progress_fd: int) -> subprocess.Popen[bytes]:
        fds = (socket_fd, progress_fd)
        group = "" if self._cgroup is None else str(self._cgroup.path)
        # -P: a file in the working directory must not shadow a module of this project.
        keeper = [sys.executable, "-P", "-m", "reward.sandbox.keeper"]
        return subprocess.Popen(
            [*keeper, "reward.sandbox.child", *map(str, fds), str(os.getpid()), self._tag, group],
            env=_environment(self._tag, str(self._directory.path)),
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # no Ctrl-C reaches it
        )

    async def ready(self) -> bool:
        """Wait until the runner is made. Return True if it takes batches.

        Raises:
            ProcessFailedError: if the runner cannot be made; the message says why.
        """
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_unix_connection(
            lambda: _Listener(self._received, self._note_end), sock=self._socket
        )
        # A fork of the verifier may hold the socket open after the process itself is gone.
        loop.add_reader(self._exit_fd, self._note_end)
        self._send(self._first_request)
        try:
            return read_start(await self.reply(self._limits.start_timeout_s))
        except TimeoutError:
            raise ProcessFailedError(
                f"the verifier was not ready after {self._limits.start_timeout_s:g} s"
            ) from None
        except (RunnerFailedError, ProtocolError) as error:
            raise ProcessFailedError(str(error)) from None

    def send(self, request: bytes, items: int) -> None:
        """Send a batch of `items` items to be scored. Only one batch may be in progress."""
        self.progress.reset(items)
        self._send(request)

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

    def excess(self) -> str | None:
        """Return which limit the process and its descendants exceed together, or None."""
        below = descendants(self._keeper.pid, ended=True)
        if len(below) - 1 > self._limits.child_processes:
            return f"the verifier had more than {self._limits.child_processes} processes running"
        killed = self._cgroup is not None and self._cgroup.was_out_of_memory()
        if killed or memory_bytes(below) > self._memory_bytes:
            return _OUT_OF_MEMORY
        return None

    async def end(self) -> None:
        """End the process, its keeper and all descendants. May be called again.

        If the calling task is cancelled, it still waits for that: a keeper that is killed at its work leaves programs.
        """
        if self._ended:
            return
        self._ended = True
        ending = asyncio.ensure_future(self._end())
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending
            raise

    async def _end(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._exit_fd)
        gone = asyncio.Event()
        loop.add_reader(self._exit_fd, gone.set)
        try:
            for number in (signal.SIGTERM, signal.SIGCONT):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._exit_fd, number)
            async with asyncio.timeout(KEEPER_TIMEOUT_S):
                await gone.wait()
        except TimeoutError:
            logger.warning("the keeper of a verifier process did not end within %g s", KEEPER_TIMEOUT_S)
        finally:
            loop.remove_reader(self._exit_fd)
            os.close(self._exit_fd)
            if self._transport is not None:
                self._transport.abort()
            self._socket.close()
        self._finish()

    def _finish(self) -> None:
        """Do what a keeper has left undone that was killed, or that cannot be scheduled."""
        swept = self._keeper.poll() == 0
        self._keeper.kill()
        self._keeper.wait()
        if not swept:
            cgroup, variable = self._cgroup, f"{TAG}={self._tag}".encode()
            sweep(
                lambda: (
                    with_environment(variable)
                    | with_mark(self._tag)
                    | (cgroup.members() if cgroup else set())
                )
            )
            if cgroup is not None:
                cgroup.remove()
        self._directory.remove()

    def _send(self, body: bytes) -> None:
        assert self._transport is not None, "not ready"
        self._serial += 1
        self._transport.write(frame(self._serial, body))

    def _note_end(self) -> None:
        """Report the end of the process or of its channel after a delay, in which last replies and both ends arrive."""
        if not self._ended:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._exit_fd)
            loop.call_later(_LAST_REPLIES_S, self._report_end, _LONGEST_WAIT_FOR_STATUS_S)

    def _report_end(self, patience_s: float) -> None:
        status = self.progress.exit_status
        keeper_runs = self._keeper.poll() is None
        if status is None and keeper_runs and patience_s > 0 and not self._ended:
            loop = asyncio.get_running_loop()
            loop.call_later(_LAST_REPLIES_S, self._report_end, patience_s - _LAST_REPLIES_S)
            return
        if self.progress.out_of_memory:
            self._received.put_nowait(LimitExceededError(_OUT_OF_MEMORY))
            return
        if status is not None:
            how = how_it_ended(status)
        elif keeper_runs:
            how = "the verifier closed the channel of its process"
        else:
            how = "the verifier or its machine killed the keeper of its process"
        self._received.put_nowait(ProcessFailedError(how))


_OUT_OF_MEMORY = "the verifier and its processes took more than reward.verifier_memory_mib together"


class _Listener(asyncio.Protocol):
    """Puts the replies that arrive into a queue."""

    def __init__(self, received: asyncio.Queue[Any], ended: Callable[[], None]) -> None:
        self._received = received
        self._ended = ended
        self._parser = ReplyParser()
        self._transport: asyncio.ReadTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked: uvloop's transports, which Ray's actors use, are of another class.
        self._transport = cast("asyncio.ReadTransport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            for reply in self._parser.feed(data):
                self._received.put_nowait(reply)
            if self._received.qsize() > MAX_UNREAD_REPLIES:
                raise ProtocolError(f"more than {MAX_UNREAD_REPLIES} unexpected replies")
        except ProtocolError as error:
            assert self._transport is not None
            self._transport.pause_reading()  # what follows cannot be read, and must not fill the memory
            self._received.put_nowait(ProcessFailedError(f"the verifier process sent {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended()


def _environment(tag: str, directory: str) -> dict[str, str]:
    """Return this process's environment without its secrets, with its search path, a temporary directory, and one
    thread for numpy."""
    ours = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TMPDIR": directory,
        TAG: tag,
    }
    return {**verifier_environment(os.environ), **ours}
