"""Signals that end a command: Ctrl-C, SIGTERM (a scheduler takes the machine back), SIGHUP (the terminal is gone).

The first signal raises an exception in the main thread, so that the command ends its actors and releases its locks. A
second one does not interrupt this clean-up, but shortens its waits (`cluster/core/ending.py`). If the process still
lives after a limit, it kills its child processes and ends. Ray-free.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from cluster.core import ending

FORCED_AFTER_S = 30.0
"""The time after the second signal at which the process is ended by force."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_KILL_TIMEOUT_S = 5.0


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP was received. The exception ends a command in the same way as Ctrl-C."""

    def __init__(self, number: signal.Signals = signal.SIGTERM) -> None:
        super().__init__(f"received {number.name}")
        self.name = number.name


class _Received:
    """The signals of the present command."""

    def __init__(self, forced_after_s: float) -> None:
        self.first: signal.Signals | None = None
        self.answer: Callable[[], object] | None = None
        """Called at the first signal, in place of raising the exception."""
        self._forced_after_s = forced_after_s
        self._hurried = False

    def handle(self, number: int, _: object) -> None:
        if self.first is None:
            self.first = signal.Signals(number)
            if self.answer is None:
                raise self.exception()
            self.answer()
        elif not self._hurried:
            self._hurried = True
            ending.hurry()
            threading.Thread(target=self._end_by_force, name="forced end", daemon=True).start()

    def exception(self) -> KeyboardInterrupt:
        assert self.first is not None, "no signal was received"
        return KeyboardInterrupt() if self.first is signal.SIGINT else Terminated(self.first)

    def _end_by_force(self) -> None:
        time.sleep(self._forced_after_s)
        kill_tree(psutil.Process(), itself=False)
        ending.do_last_acts()
        assert self.first is not None
        os._exit(128 + (signal.SIGINT if self.first is signal.SIGINT else signal.SIGTERM))


_received = _Received(FORCED_AFTER_S)


def answer_signals(forced_after_s: float = FORCED_AFTER_S) -> None:
    """From now on, raise KeyboardInterrupt or `Terminated` in the main thread at the first signal that ends a command,
    and hurry at the second. Signals that the caller of the command ignores (`nohup`) stay ignored.

    It is called when a command begins, and again when a library has installed handlers of its own.
    """
    global _received
    _received = _Received(forced_after_s)
    ending.take_time()
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _received.handle)


def note_signals() -> None:
    """From now on, only note the first signal: the command has ended, and an exception would interrupt what the
    interpreter cleans up at its exit. A second signal still hurries."""
    _received.answer = lambda: None


@contextmanager
def answered_by(answer: Callable[[], object]) -> Iterator[None]:
    """Call `answer` at the first signal during the block, which has to end the block soon. Its exception is raised at
    the end of the block."""
    received = _received
    received.answer = answer
    try:
        yield
    except BaseException as error:
        if received.first is None:
            raise
        raise received.exception() from error
    finally:
        received.answer = None
    if received.first is not None:
        raise received.exception()


@contextmanager
def hangup_kept_from_children() -> Iterator[None]:
    """Let processes that the block starts ignore the end of the terminal. This process ends them in order."""
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def kill_tree(process: psutil.Process, *, itself: bool = True) -> None:
    """Kill the descendants of a process, and the process `itself`, and wait until they have ended."""
    try:
        doomed = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for victim in [*([process] if itself else []), *doomed]:
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(doomed, _KILL_TIMEOUT_S)
