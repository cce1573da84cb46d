"""Finds responses that take too long. Pure: no engine, and times are arguments."""

from __future__ import annotations

from collections.abc import Mapping


class ResponseClock:
    """Measures the time of each response from its first token, so that no response is truncated while it waits for its
    turn.

    Usage:
        clock = ResponseClock(timeout_s=60.0)
        overdue = clock.look({"worker-0-17": 230, "worker-0-18": 0}, now_s)   # at regular intervals
        "worker-0-17" in clock.overdue
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._began_s: dict[str, float] = {}
        self.overdue: set[str] = set()
        """The ids of the responses that were overdue. The caller removes an id when its response has ended."""

    def look(self, sampled_tokens: Mapping[str, int], now_s: float) -> list[str]:
        """Return the responses that have become overdue, each once.

        Args:
            sampled_tokens: the number of tokens of every response in flight, by id.
            now_s: the current time.
        """
        self._began_s = {
            id_: self._began_s.get(id_, now_s) for id_, tokens in sampled_tokens.items() if tokens
        }
        overdue = [
            id_
            for id_, began_s in self._began_s.items()
            if now_s - began_s > self._timeout_s and id_ not in self.overdue
        ]
        self.overdue.update(overdue)
        return overdue
