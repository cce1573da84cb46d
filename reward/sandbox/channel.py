"""The messages between a verifier process and its parent.

Requests are pickled, since a problem may be any object. Replies are JSON and are not trusted: the process runs code
that users and models wrote, and that code may write into any file descriptor.

    frame    = length (4 bytes) · serial (8 bytes) · body (length bytes)
    request  = the runner's specification and the memory limit, once;
               then ([problem, …], [(index of its problem, response), …]), each problem pickled for itself
    reply    = {"ready": batched} or {"failed": reason}, once;
               then {"verdicts": [[index, outcome, reward, answer, reason], …], "done": bool, "children": bool}

Every reply carries the serial of the request that it answers. In addition, a few numbers in shared memory say which
response is being scored, even while the process neither reads nor writes.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from cluster.core.text import valid_text
from cluster.core.types import IndexedVerdicts, Verdict
from reward.sandbox.keeper import EXIT_STATUS, OUT_OF_MEMORY, PROGRESS_NUMBERS
from reward.verdicts import MAX_REASON_CHARACTERS, checked_verdict

HEADER = struct.Struct("!IQ")
MAX_REPLY_BYTES = 16 * 2**20


class ProtocolError(ValueError):
    """The bytes that arrived were not written by this module."""


class RunnerFailedError(RuntimeError):
    """The verifier process could not make its runner; the message is its reason."""


class Scored(NamedTuple):
    """A reply with verdicts."""

    verdicts: IndexedVerdicts
    done: bool
    """True if no further reply to the request follows."""
    children: bool
    """True if the verifier has left child processes."""


def frame(serial: int, body: bytes) -> bytes:
    """Return a message as bytes."""
    return HEADER.pack(len(body), serial) + body


class ReplyParser:
    """Splits the bytes that arrive into replies."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the replies that are complete now, each with its serial.

        Raises:
            ProtocolError: if the bytes are not a reply.
        """
        self._received += data
        while len(self._received) >= HEADER.size:
            length, serial = HEADER.unpack_from(self._received)
            if length > MAX_REPLY_BYTES:
                raise ProtocolError(f"a reply of {length} bytes")
            end = HEADER.size + length
            if len(self._received) < end:
                return
            body = bytes(self._received[HEADER.size : end])
            del self._received[:end]
            yield serial, _read_object(body)


def _read_object(body: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(body)
    except Exception as error:  # ValueError, RecursionError, MemoryError: whatever the parser raises
        raise ProtocolError(f"a reply that is not JSON ({type(error).__name__})") from None
    if not isinstance(reply, dict):
        raise ProtocolError("a reply that is not an object")
    return reply


def pack(index: int, verdict: Verdict) -> list[Any]:
    """Return a verdict as a JSON list.

    Raises:
        TypeError: if it is not a verdict.
        ValueError: if its outcome is unknown or its reward is not a finite number.
    """
    if not isinstance(verdict, Verdict):
        raise TypeError(f"the verifier gave {verdict!r:.100}, which is not a Verdict")
    checked = checked_verdict(verdict.outcome, verdict.reward, verdict.answer, verdict.reason)
    return [index, checked.outcome, checked.reward, checked.answer, checked.reason]


def read_start(reply: dict[str, Any]) -> bool:
    """Read the first reply. Return True if the runner takes batches.

    Raises:
        RunnerFailedError: if the runner could not be made.
        ProtocolError: if it is another reply.
    """
    match list(reply.items()):
        case [("ready", bool() as batched)]:
            return batched
        case [("failed", str() as reason)]:
            raise RunnerFailedError(valid_text(reason, MAX_REASON_CHARACTERS))
    raise ProtocolError("an invalid first reply")


def read_verdicts(reply: dict[str, Any], items: int) -> Scored:
    """Read a reply to a request with `items` items.

    Raises:
        ProtocolError: if it is another reply, or a verdict in it is invalid.
    """
    match reply:
        case {"verdicts": list() as entries, "done": bool() as done, "children": bool() as children} if (
            len(reply) == 3
        ):
            return Scored([unpack(entry, items) for entry in entries], done, children)
    raise ProtocolError("an invalid reply")


def unpack(entry: Any, items: int) -> tuple[int, Verdict]:
    """Return the index, which is below `items`, and the verdict.

    Raises:
        ProtocolError: if `entry` is not as `pack` writes it, whatever exception that causes.
    """
    try:
        index, outcome, reward, answer, reason = entry
        if (
            type(index) is int
            and 0 <= index < items
            and type(reward) in (float, int)
            and (answer is None or type(answer) is str)
            and type(reason) is str
        ):
            return index, checked_verdict(outcome, reward, answer, reason)
    except Exception as error:
        raise ProtocolError(f"an invalid verdict ({error})") from None
    raise ProtocolError("an invalid verdict")


class Progress:
    """Numbers in memory that a verifier process, its keeper and the parent share.

    The process writes the range of items, `[begin, end)`, that it is scoring, and the time at which it began. The
    parent writes `cut`: the items from there on were given to other processes. The keeper writes how the process ended.
    """

    BYTES = PROGRESS_NUMBERS * 8

    def __init__(self, fd: int) -> None:
        self._numbers = memoryview(mmap.mmap(fd, self.BYTES)).cast("q")

    @classmethod
    def create(cls) -> tuple[Progress, int]:
        """Return the numbers and the descriptor for the child to inherit. The caller closes the descriptor."""
        fd = os.memfd_create("verifier-progress")
        os.ftruncate(fd, cls.BYTES)
        return cls(fd), fd

    def reset(self, items: int) -> None:
        """Record a new batch of `items` items, none of which has begun."""
        self._numbers[0] = self._numbers[1] = self._numbers[2] = 0
        self._numbers[3] = items

    def begin(self, begin: int, end: int, now_ns: int) -> None:
        """Record that the items `[begin, end)` are being scored."""
        self._numbers[0], self._numbers[1], self._numbers[2] = begin, end, now_ns

    @property
    def current(self) -> range:
        return range(self._numbers[0], self._numbers[1])

    @property
    def since_ns(self) -> int | None:
        """The time at which the current items began, in ns of `time.monotonic_ns()`, a clock that all processes of a
        machine share. None if none has begun."""
        return self._numbers[2] or None

    @property
    def cut(self) -> int:
        return self._numbers[3]

    @cut.setter
    def cut(self, end: int) -> None:
        self._numbers[3] = end

    @property
    def exit_status(self) -> int | None:
        """The wait status of the process; None while it runs."""
        return self._numbers[EXIT_STATUS] - 1 if self._numbers[EXIT_STATUS] else None

    @property
    def out_of_memory(self) -> bool:
        """True if the kernel has killed a process because of the memory limit."""
        return bool(self._numbers[OUT_OF_MEMORY])


def pack_request(items: Sequence[tuple[bytes, str]]) -> bytes:
    """Return (pickled problem, response) pairs as the body of a request. Each different problem is sent once."""
    places: dict[bytes, int] = {}
    pairs = [(places.setdefault(problem, len(places)), response) for problem, response in items]
    return pickle.dumps((list(places), pairs))
