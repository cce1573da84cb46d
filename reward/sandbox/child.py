"""The verifier process, which `keeper.py` forks. `process.py` is the other end of its channel.

The process reads a runner's specification, makes the runner, and scores batch after batch until the socket ends. It
does not guard against a verifier that hangs or breaks the process: the parent notices that and kills the process.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import resource
import socket
import sys
import time
from typing import Any

from reward.sandbox.channel import HEADER, Progress, frame, pack
from reward.sandbox.spec import RunnerSpec, VerifierRunner
from reward.verdicts import describe_error, error_verdict

FLUSH_NS = 5_000_000
"""The time that a verdict may wait in order to be sent together with later ones."""


def main(socket_fd: int, progress_fd: int) -> None:
    """Serve the parent's requests until the socket ends."""
    _forbid_forks_of_forks()
    for fd in (socket_fd, progress_fd):
        os.set_inheritable(fd, False)
    channel = socket.socket(fileno=socket_fd)
    progress = Progress(progress_fd)
    os.close(progress_fd)
    serial, body = _receive(channel)
    spec, memory_mib = pickle.loads(body)
    try:
        runner = _prepare(spec, memory_mib)
    except BaseException as error:  # the import of a user's module may raise anything
        channel.sendall(frame(serial, json.dumps({"failed": describe_error(error)}).encode()))
        return
    channel.sendall(frame(serial, json.dumps({"ready": runner.batched}).encode()))
    gc.freeze()  # imported objects stay alive, so the garbage collector need not visit them again
    while True:
        _Batch(runner, channel, progress, *_receive(channel)).run()


def _forbid_forks_of_forks() -> None:
    """Let a fork work and start programs, but not fork again.

    A fork bomb doubles, and would reach thousands of processes before it is found. The system's own limit on processes
    does not apply to root.
    """
    process_id = os.getpid()

    def refuse() -> None:
        if os.getpid() != process_id:
            os._exit(1)

    os.register_at_fork(before=refuse)


def _prepare(spec: RunnerSpec, memory_mib: int) -> VerifierRunner:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # files in shared memory, and memfd, too
    sys.path[:0] = [path for path in spec.search_path if path not in sys.path]
    return spec.make()


def _receive(channel: socket.socket) -> tuple[int, bytes]:
    """Return the next request. The process ends when the socket does."""
    length, serial = HEADER.unpack(_read_exactly(channel, HEADER.size))
    return serial, _read_exactly(channel, length)


def _read_exactly(channel: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = channel.recv(count - len(data))
        if not part:
            os._exit(0)  # at once: threads that a verifier left running must not keep this process alive
        data += part
    return bytes(data)


class _Batch:
    """One request: score its items and send the verdicts."""

    def __init__(
        self, runner: VerifierRunner, channel: socket.socket, progress: Progress, serial: int, body: bytes
    ) -> None:
        self._runner = runner
        self._channel = channel
        self._progress = progress
        self._serial = serial
        self._problems: list[bytes]
        self._pairs: list[tuple[int, str]]
        self._problems, self._pairs = pickle.loads(body)
        self._unchangeable: dict[int, Any] = {}
        self._missing = set(range(len(self._pairs)))
        self._finished: list[list[Any]] = []
        self._flushed_ns = time.monotonic_ns()
        self._process_id = os.getpid()

    def run(self) -> None:
        if self._runner.batched:
            self._score_together()
        for index in sorted(self._missing):
            now_ns = time.monotonic_ns()
            if now_ns - self._flushed_ns > FLUSH_NS:
                self._flush()
            if index >= self._progress.cut:
                break
            self._progress.begin(index, index + 1, now_ns)
            self._finished.append(self._score(index, *self._pairs[index]))
        self._flush(done=True, children=_has_children())

    def _score_together(self) -> None:
        """Score all items in one call. `run` scores the items alone that have no verdict afterwards."""
        self._progress.begin(0, len(self._pairs), time.monotonic_ns())
        try:
            problems = [self._problem(place) for place, _ in self._pairs]
            responses = [response for _, response in self._pairs]
            for verdicts in self._runner.score_batch(problems, responses):
                self._end_if_forked()
                entries = [pack(index, verdict) for index, verdict in verdicts if index in self._missing]
                self._missing -= {entry[0] for entry in entries}
                self._finished += entries
                if self._missing:
                    self._flush()  # the next verdict may never arrive
        except BaseException:
            pass
        finally:
            self._end_if_forked()

    def _score(self, index: int, problem: int, response: str) -> list[Any]:
        try:
            return pack(index, self._runner.score(self._problem(problem), response))
        except BaseException as error:  # SystemExit and KeyboardInterrupt are failures of the verifier, too
            return pack(index, error_verdict(error))
        finally:
            self._end_if_forked()

    def _problem(self, place: int) -> Any:
        """Return a problem. A verifier may change it, so each call gets its own, unless it cannot be changed."""
        if place in self._unchangeable:
            return self._unchangeable[place]
        problem = pickle.loads(self._problems[place])
        if _cannot_change(problem):
            self._unchangeable[place] = problem
        return problem

    def _end_if_forked(self) -> None:
        """End this process if it is a fork: a verifier that forked returns twice, and only the original may answer."""
        if os.getpid() != self._process_id:
            os._exit(0)

    def _flush(self, done: bool = False, children: bool = False) -> None:
        reply = {"verdicts": self._finished, "done": done, "children": children}
        self._channel.sendall(frame(self._serial, json.dumps(reply).encode()))
        self._finished = []
        self._flushed_ns = time.monotonic_ns()


def _cannot_change(problem: Any) -> bool:
    """Return True for text, numbers, and frozen data classes of such values."""
    parameters = getattr(type(problem), "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        return isinstance(problem, str | bytes | int | float | None)
    try:
        hash(problem)  # lists and dictionaries inside it have no hash
    except TypeError:
        return False
    return True


def _has_children() -> bool:
    """Return True if the verifier has left child processes."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True
