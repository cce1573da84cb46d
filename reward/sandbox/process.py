"""One verifier process as its keeper sees it: started, asked, heard, and killed with all that it has started."""

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

from reward.sandbox.channel import Progress, ProtocolError, ReplyParser, frame
from reward.sandbox.recipe import Limits, Recipe

_TAG = "HPO_VERIFIER_PROCESS"
_KILL_ROUNDS = 50
_LAST_WORDS_S = 0.1


class ProcessFailedError(RuntimeError):
    """The process ended, or what it says makes no sense. It is of no more use."""


class VerifierProcess:
    """Usage, within an event loop:

    process = VerifierProcess(recipe, limits)
    try:
        batched = await process.ready()
        process.ask([(problem, response), …])
        reply = await process.reply(within_s=0.1)    # again, until one says "done"
    finally:
        process.kill()
    """

    def __init__(self, recipe: Recipe, limits: Limits) -> None:
        self._limits = limits
        self._serial = 0
        self._tag = uuid.uuid4().hex
        self._heard: asyncio.Queue[tuple[int, dict[str, Any]] | ProcessFailedError] = asyncio.Queue()
        self.progress, progress_fd = Progress.create()
        ours, theirs = socket.socketpair()
        # -P: the working directory is no place to find our own modules, whatever lies there.
        command = [sys.executable, "-P", "-m", "reward.sandbox.child", str(theirs.fileno()), str(progress_fd)]
        try:
            self._process = subprocess.Popen(
                command,
                env=_environment(self._tag),
                pass_fds=(theirs.fileno(), progress_fd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a group of its own, to be killed as one, that no Ctrl-C reaches
            )
        finally:
            theirs.close()
            os.close(progress_fd)
        self._socket = ours
        self._exit_fd = os.pidfd_open(self._process.pid)
        self._transport: asyncio.WriteTransport | None = None
        self._first_request = pickle.dumps((recipe, limits.memory_mib))

    async def ready(self) -> bool:
        """Wait until the judge is made. Returns whether it takes batches.

        Raises:
            ProcessFailedError: it could not be made; the message says why.
        """
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_unix_connection(
            lambda: _Listener(self._heard, self._ended), sock=self._socket
        )
        # A verifier's fork may hold the socket open when the process itself is gone.
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

    def ask(self, items: Sequence[tuple[Any, str]]) -> None:
        """Have problems and responses judged. One batch at a time.

        Raises:
            ProcessFailedError: a problem cannot be pickled.
        """
        self.progress.reset(len(items), time.monotonic_ns())
        try:
            self._send(pickle.dumps(items))
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            raise ProcessFailedError(f"a problem cannot be sent to a verifier process: {error}") from None

    async def reply(self, within_s: float) -> dict[str, Any]:
        """The next reply to what was asked last.

        Raises:
            TimeoutError: there was none.
            ProcessFailedError: there will be none.
        """
        async with asyncio.timeout(within_s):
            heard = await self._heard.get()
        if isinstance(heard, ProcessFailedError):
            raise heard
        serial, reply = heard
        if serial != self._serial:
            raise ProcessFailedError("something was written into the channel of the verifier process")
        return reply

    def children(self) -> list[psutil.Process]:
        """All that it has started and that still runs."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True)
        return []

    def kill(self) -> None:
        """Kill the process and whatever it has started, and wait for it. May be called again."""
        if self._process.returncode is not None:
            return
        killed: set[psutil.Process] = set()
        for _ in range(
            _KILL_ROUNDS
        ):  # what starts processes while they are looked for is found in the next round
            # The process itself goes last: those whose parents die become its children, wherever else they hide.
            os.killpg(self._process.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            children = self.children() if self._exit_status() is None else _bearing(self._tag)
            if not (new := {child for child in children if _runs(child)} - killed):
                break
            for child in new:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            killed |= new
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
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
        """The process or its channel has come to an end: which of them is said when there was time for both, and for
        the last words."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._exit_fd)
        loop.call_later(_LAST_WORDS_S, self._say_how_it_ended)

    def _say_how_it_ended(self) -> None:
        if self._process.returncode is None:  # else it was killed meanwhile, and nobody listens
            status = self._exit_status()
            self._heard.put_nowait(
                ProcessFailedError(status or "the verifier closed the channel of its process")
            )

    def _exit_status(self) -> str | None:
        """How the process ended, in words; None while it runs. It is not reaped, so that its id stays its own."""
        ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        if ended.si_code == os.CLD_EXITED:
            return f"the verifier ended its process with exit code {ended.si_status}"
        return f"the verifier's process died of {signal.Signals(ended.si_status).name}"


class _Listener(asyncio.Protocol):
    """Puts what arrives into a queue."""

    def __init__(self, heard: asyncio.Queue[Any], ended: Callable[[], None]) -> None:
        self._heard = heard
        self._ended = ended
        self._parser = ReplyParser()

    def data_received(self, data: bytes) -> None:
        try:
            for reply in self._parser.feed(data):
                self._heard.put_nowait(reply)
        except ProtocolError as error:
            self._heard.put_nowait(ProcessFailedError(f"the verifier process sent {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended()


def _environment(tag: str) -> dict[str, str]:
    """Ours, with our search path, and one thread for numpy: there are as many processes as are wanted."""
    ours = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        _TAG: tag,
    }
    return {**os.environ, **ours}


def _bearing(tag: str) -> list[psutil.Process]:
    """The processes of this machine that inherited `tag`. Those of a dead parent cannot be found as its children."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(_TAG) == tag:
                found.append(process)
    return found


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
