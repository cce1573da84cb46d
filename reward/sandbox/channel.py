"""What a verifier process and its keeper tell each other.

Requests are pickled, since problems may be anything. Replies are JSON and nothing in them is trusted: the process runs
code that was written by others, and that code may write into any file descriptor.

    frame    = length (4 bytes) · serial (8 bytes) · body (length bytes)
    request  = the recipe and the memory limit, once; then [(problem, response), …]
    reply    = {"ready": batched} or {"failed": reason}, once;
               then {"verdicts": [[index, outcome, reward, answer, reason], …], "done": bool, "children": bool}

Every reply carries the serial of the request that it answers. Beside the frames there are a few numbers in shared
memory, which say what is being judged even while the process hears and says nothing.
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

HEADER = struct.Struct("!IQ")
MAX_REPLY_BYTES = 16 * 2**20
MAX_ANSWER_CHARACTERS = 4000
MAX_REASON_CHARACTERS = 1000
_OUTCOMES = frozenset(get_args(Outcome))


class ProtocolError(ValueError):
    """What came was not written by our code."""


def frame(serial: int, body: bytes) -> bytes:
    return HEADER.pack(len(body), serial) + body


class ReplyParser:
    """Cuts what arrives into replies."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
        """The replies that are complete now, each with its serial.

        Raises:
            ProtocolError: this is no reply.
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
                raise ProtocolError("a reply that is no object")
            yield serial, reply


def packed(index: int, verdict: Verdict) -> list[Any]:
    """A verdict as it travels. Long texts are cut.

    Raises:
        TypeError, ValueError: it is no verdict, or its reward is no finite number.
    """
    if not isinstance(verdict, Verdict):
        raise TypeError(f"the verifier gave {verdict!r:.100}, which is no Verdict")
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


def unpacked(entry: Any, items: int) -> tuple[int, Verdict]:
    """The index, below `items`, and the verdict.

    Raises:
        ProtocolError: this is no verdict.
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
    raise ProtocolError("a verdict that is none")


class Progress:
    """Shared memory of keeper and process.

    The process writes which items of its batch it is judging, `[begin, end)`, and since when. The keeper writes `cut`:
    items from there on were given to others.
    """

    BYTES = 4 * 8

    def __init__(self, fd: int) -> None:
        self._numbers = memoryview(mmap.mmap(fd, self.BYTES)).cast("q")

    @classmethod
    def create(cls) -> tuple[Progress, int]:
        """With the descriptor to be inherited; the caller closes it."""
        fd = os.memfd_create("verifier-progress")
        os.ftruncate(fd, cls.BYTES)
        return cls(fd), fd

    def reset(self, items: int, now_ns: int) -> None:
        self._numbers[0] = self._numbers[1] = 0
        self._numbers[2] = now_ns
        self._numbers[3] = items

    def judging(self, begin: int, end: int, now_ns: int) -> None:
        self._numbers[0], self._numbers[1], self._numbers[2] = begin, end, now_ns

    @property
    def current(self) -> range:
        return range(self._numbers[0], self._numbers[1])

    @property
    def since_ns(self) -> int:
        """`time.monotonic_ns()`, which all processes of a machine share."""
        return self._numbers[2]

    @property
    def cut(self) -> int:
        return self._numbers[3]

    @cut.setter
    def cut(self, end: int) -> None:
        self._numbers[3] = end
