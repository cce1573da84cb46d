"""One verifier process as its keeper sees it: started, asked, heard, and killed with all that it has started."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from reward.sandbox.channel import Progress, ProtocolError, ReplyParser, frame
from reward.sandbox.killing import TAG, descendants, how_it_ended, kill
from reward.sandbox.recipe import Limits, Recipe

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

    def started(self) -> int:
        """How many processes it has started that are still there."""
        return len(descendants(self._process.pid))

    def kill(self) -> None:
        """Kill the process and whatever it has started, and wait for it. May be called again."""
        if self._process.returncode is not None:
            return
        kill(self._process, self._tag)
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
            how = how_it_ended(self._process.pid) or "the verifier closed the channel of its process"
            self._heard.put_nowait(ProcessFailedError(how))


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
        TAG: tag,
    }
    return {**os.environ, **ours}
