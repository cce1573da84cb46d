"""The time that verdicts may take: the deadline of a call follows from its responses, so load is not taken for a hang.

Each response has a clock of its own inside the reward actor, from the moment at which its scoring begins. A call of an
actor ends when the last of its responses ends, behind those of earlier calls.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

RESTART_S = 10.0
"""The time that a loaded machine may take to kill a verifier process and to start the next one."""
TRIES = 2
"""The number of times that a response may be scored: with others, and then alone."""


class Pace(NamedTuple):
    """The slowest pace at which an actor that works scores responses."""

    at_once: int
    """The number of responses that it scores at the same time."""
    response_s: float
    """The longest time for one response, from the beginning of its scoring."""

    @classmethod
    def of_processes(cls, processes: int, verifier_timeout_s: float) -> Pace:
        """Return the pace of verifier processes."""
        return cls(processes, TRIES * (verifier_timeout_s + RESTART_S))

    def together_with(self, other: Pace) -> Pace:
        """Return the pace at which two scorers, side by side, score each response."""
        return Pace(min(self.at_once, other.at_once), max(self.response_s, other.response_s))

    def longest_s(self, responses: int) -> float:
        """Return the longest time for `responses` responses."""
        return math.ceil(responses / self.at_once) * self.response_s


class Workload:
    """The responses that wait at one actor, and the time at which it last delivered verdicts.

    While responses wait, an actor that works delivers some within `pace.response_s`. `slack_s` is the additional time
    for whatever else may delay it, such as its start.
    """

    def __init__(self, pace: Pace, slack_s: float) -> None:
        self._pace = pace
        self._slack_s = slack_s
        self._waiting = 0
        self._added = 0
        """The number of responses of all calls until now."""
        self._heard_at = time.monotonic()

    def add(self, responses: int) -> Callable[[], float]:
        """Record a call with `responses` responses. Return a function that gives its deadline.

        The deadline moves with the verdicts that arrive and with further calls, since the actor may interleave them.
        """
        now = time.monotonic()
        if not self._waiting:
            self._heard_at = now
        self._waiting += responses
        self._added += responses
        before = self._added - self._waiting

        def deadline() -> float:
            whole = now + self._pace.longest_s(self._added - before)
            return self._slack_s + min(whole, self._heard_at + self._pace.response_s)

        return deadline

    def delivered(self, responses: int) -> None:
        """Record that verdicts have arrived."""
        self._waiting -= responses
        self._heard_at = time.monotonic()

    def forget(self, responses: int) -> None:
        """Record that a call has ended with `responses` responses missing."""
        self._waiting -= responses

    def __str__(self) -> str:
        return (
            f"{self._waiting} responses wait there; it scores {self._pace.at_once} at a time, and each may take "
            f"{self._pace.response_s:g} s"
        )
