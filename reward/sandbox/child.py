"""A verifier process: `python -m reward.sandbox.child SOCKET_FD PROGRESS_FD`. Its keeper is `process.py`.

It reads a recipe, makes the judge, and then judges batch after batch until the socket ends. Nothing here guards
against a verifier that hangs or breaks the process: the keeper sees that, and kills it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pickle
import resource
import signal
import socket
import sys
import time
from typing import Any

from reward.sandbox.channel import HEADER, Progress, frame, packed
from reward.sandbox.failures import describe, failed
from reward.sandbox.recipe import Recipe, VerifierRunner

FLUSH_NS = 5_000_000
"""Verdicts wait this long for others to travel with."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(socket_fd: int, progress_fd: int) -> None:
    _die_with_the_keeper()
    _forbid_forks_of_forks()
    for fd in (socket_fd, progress_fd):
        os.set_inheritable(fd, False)
    channel = socket.socket(fileno=socket_fd)
    progress = Progress(progress_fd)
    os.close(progress_fd)
    serial, body = _receive(channel)
    recipe, memory_mib = pickle.loads(body)
    try:
        judge = _prepare(recipe, memory_mib)
    except BaseException as error:  # the import of somebody's module may raise anything
        channel.sendall(frame(serial, json.dumps({"failed": describe(error)}).encode()))
        return
    channel.sendall(frame(serial, json.dumps({"ready": judge.batched}).encode()))
    gc.freeze()  # what was imported stays, and need not be looked through again
    while True:
        _Batch(judge, channel, progress, *_receive(channel)).run()


def _die_with_the_keeper() -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Whatever a verifier starts stays below this process, and is found and killed with it.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _forbid_forks_of_forks() -> None:
    """A fork may work or start programs, but not fork again: what doubles would be thousands before it is found, and
    the system's own limit on processes does not hold for root."""
    process_id = os.getpid()

    def refuse() -> None:
        if os.getpid() != process_id:
            os._exit(1)

    os.register_at_fork(before=refuse)


def _prepare(recipe: Recipe, memory_mib: int) -> VerifierRunner:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    sys.path[:0] = [path for path in recipe.search_path if path not in sys.path]
    return recipe.make()


def _receive(channel: socket.socket) -> tuple[int, bytes]:
    """The next request; the process ends when there is none any more."""
    length, serial = HEADER.unpack(_read_exactly(channel, HEADER.size))
    return serial, _read_exactly(channel, length)


def _read_exactly(channel: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = channel.recv(count - len(data))
        if not part:
            os._exit(0)  # at once: what a verifier has left running must not hold this process
        data += part
    return bytes(data)


class _Batch:
    """One request, judged and answered."""

    def __init__(
        self, judge: VerifierRunner, channel: socket.socket, progress: Progress, serial: int, body: bytes
    ) -> None:
        self._score = judge
        self._channel = channel
        self._progress = progress
        self._serial = serial
        self._items: list[tuple[Any, str]] = pickle.loads(body)
        self._missing = set(range(len(self._items)))
        self._finished: list[list[Any]] = []
        self._flushed_ns = time.monotonic_ns()
        self._process_id = os.getpid()

    def run(self) -> None:
        if self._score.batched:
            self._score_at_once()
        for index in sorted(self._missing):
            now_ns = time.monotonic_ns()
            if now_ns - self._flushed_ns > FLUSH_NS:
                self._flush()
            if index >= self._progress.cut:
                break
            self._progress.judging(index, index + 1, now_ns)
            self._finished.append(self._entry(index, *self._items[index]))
        self._flush(done=True, children=_has_children())

    def _score_at_once(self) -> None:
        """All together. What fails is tried alone afterwards, so that the innocent get their verdicts."""
        self._progress.judging(0, len(self._items), time.monotonic_ns())
        try:
            problems, responses = zip(*self._items, strict=True)
            for placed in self._score.score_batch(problems, responses):
                self._refuse_a_fork()
                entries = [packed(index, verdict) for index, verdict in placed if index in self._missing]
                self._missing -= {entry[0] for entry in entries}
                self._finished += entries
                if self._missing:
                    self._flush()  # whoever is waited for now may never answer
        except BaseException:
            pass
        finally:
            self._refuse_a_fork()

    def _entry(self, index: int, problem: Any, response: str) -> list[Any]:
        try:
            return packed(index, self._score.score(problem, response))
        except BaseException as error:  # SystemExit and KeyboardInterrupt too are a verifier's failure here
            return packed(index, failed(error))
        finally:
            self._refuse_a_fork()

    def _refuse_a_fork(self) -> None:
        """A verifier that forked returns twice. Only one of the two is the process that was asked."""
        if os.getpid() != self._process_id:
            os._exit(0)

    def _flush(self, done: bool = False, children: bool = False) -> None:
        reply = {"verdicts": self._finished, "done": done, "children": children}
        self._channel.sendall(frame(self._serial, json.dumps(reply).encode()))
        self._finished = []
        self._flushed_ns = time.monotonic_ns()


def _has_children() -> bool:
    """Whether the verifier has left processes behind."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
