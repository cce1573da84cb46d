"""Which responses take too long. Pure: no engine, and times are given."""

from __future__ import annotations

from collections.abc import Mapping


class ResponseClock:
    """Times each response from when its first token was seen, so that nobody is cut off while it waits for its turn.

    Usage:
        clock = ResponseClock(timeout_s=60.0)
        overdue = clock.look({"worker-0-17": 230, "worker-0-18": 0}, now_s)   # now and then
        "worker-0-17" in clock.cut_off
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._began_s: dict[str, float] = {}
        self.cut_off: set[str] = set()
        """Those that were overdue. Whoever learns of an end discards it."""

    def look(self, sampled_tokens: Mapping[str, int], now_s: float) -> list[str]:
        """The responses that are overdue now, each once, given how many tokens every one in flight has."""
        self._began_s = {
            id_: self._began_s.get(id_, now_s) for id_, tokens in sampled_tokens.items() if tokens
        }
        overdue = [
            id_
            for id_, began_s in self._began_s.items()
            if now_s - began_s > self._timeout_s and id_ not in self.cut_off
        ]
        self.cut_off.update(overdue)
        return overdue
