"""The messages between a verifier process and its parent.

Requests are pickled, since a problem may be any object. Replies are JSON and are not trusted: the process runs code
that users and models wrote, and that code may write into any file descriptor.

    frame    = length (4 bytes) · serial (8 bytes) · body (length bytes)
    request  = the runner's specification and the memory limit, once; then [(problem, response), …]
    reply    = {"ready": batched} or {"failed": reason}, once;
               then {"verdicts": [[index, outcome, reward, answer, reason], …], "done": bool, "children": bool}

Every reply carries the serial of the request that it answers. In addition, a few numbers in shared memory say which
response is being scored, even while the process neither reads nor writes.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Any, get_args

from cluster.core.types import Outcome, Verdict
from reward.verdicts import refuse_renamed

HEADER = struct.Struct("!IQ")
MAX_REPLY_BYTES = 16 * 2**20
MAX_ANSWER_CHARACTERS = 4000
MAX_REASON_CHARACTERS = 1000
_OUTCOMES = frozenset(get_args(Outcome))


class ProtocolError(ValueError):
    """The bytes that arrived were not written by this module."""


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
            try:
                reply = json.loads(body)
            except (ValueError, RecursionError):
                raise ProtocolError("a reply that is not JSON") from None
            if not isinstance(reply, dict):
                raise ProtocolError("a reply that is not an object")
            yield serial, reply


def pack(index: int, verdict: Verdict) -> list[Any]:
    """Return a verdict as a JSON list. Long texts are cut.

    Raises:
        TypeError: if it is not a verdict.
        ValueError: if its outcome is unknown or its reward is not a finite number.
    """
    if not isinstance(verdict, Verdict):
        raise TypeError(f"the verifier gave {verdict!r:.100}, which is not a Verdict")
    refuse_renamed(verdict.outcome, f"the verifier gave {verdict!r:.100}")
    if not math.isfinite(verdict.reward) or verdict.outcome not in _OUTCOMES:
        raise ValueError(
            f"the verifier gave the outcome {verdict.outcome!r:.100} and the reward {verdict.reward}"
        )
    answer = None if verdict.answer is None else str(verdict.answer)[:MAX_ANSWER_CHARACTERS]
    return [
        index,
        verdict.outcome,
        float(verdict.reward),
        answer,
        str(verdict.reason)[:MAX_REASON_CHARACTERS],
    ]


def unpack(entry: Any, items: int) -> tuple[int, Verdict]:
    """Return the index, which is below `items`, and the verdict.

    Raises:
        ProtocolError: if `entry` is not a verdict.
    """
    match entry:
        case [
            int() as index,
            str() as outcome,
            float() | int() as reward,
            str() | None as answer,
            str() as reason,
        ]:
            if 0 <= index < items and outcome in _OUTCOMES and math.isfinite(reward):
                return index, Verdict(outcome, float(reward), answer, reason)  # type: ignore[arg-type]
    raise ProtocolError("an invalid verdict")


class Progress:
    """Numbers in memory that a verifier process and its parent share.

    The process writes the range of items, `[begin, end)`, that it is scoring, and the time at which it began. The
    parent writes `cut`: the items from there on were given to other processes.
    """

    BYTES = 4 * 8

    def __init__(self, fd: int) -> None:
        self._numbers = memoryview(mmap.mmap(fd, self.BYTES)).cast("q")

    @classmethod
    def create(cls) -> tuple[Progress, int]:
        """Return the numbers and the descriptor for the child to inherit. The caller closes the descriptor."""
        fd = os.memfd_create("verifier-progress")
        os.ftruncate(fd, cls.BYTES)
        return cls(fd), fd

    def reset(self, items: int, now_ns: int) -> None:
        """Record a new batch of `items` items, none of which has begun."""
        self._numbers[0] = self._numbers[1] = 0
        self._numbers[2] = now_ns
        self._numbers[3] = items

    def begin(self, begin: int, end: int, now_ns: int) -> None:
        """Record that the items `[begin, end)` are being scored."""
        self._numbers[0], self._numbers[1], self._numbers[2] = begin, end, now_ns

    @property
    def current(self) -> range:
        return range(self._numbers[0], self._numbers[1])

    @property
    def since_ns(self) -> int:
        """The start time in ns of `time.monotonic_ns()`, a clock that all processes of a machine share."""
        return self._numbers[2]

    @property
    def cut(self) -> int:
        return self._numbers[3]

    @cut.setter
    def cut(self, end: int) -> None:
        self._numbers[3] = end
