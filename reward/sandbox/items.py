"""The responses in the queue of a sandbox, and the calls that wait for their verdicts."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from cluster.core.types import IndexedVerdicts, Verdict


class Call:
    """The responses of one call of `Sandbox.score`. Their verdicts are delivered as they arrive."""

    def __init__(self, responses: int) -> None:
        self._missing = set(range(responses))
        self._arrived: list[tuple[int, Verdict]] = []
        self._changed = asyncio.Event()
        self._pickled: dict[int, bytes] = {}

    def settle(self, index: int, verdict: Verdict) -> None:
        """Record a verdict. Only the first verdict on a response counts."""
        if index in self._missing:
            self._missing.remove(index)
            self._arrived.append((index, verdict))
            self._changed.set()

    def pickled(self, problem: Any) -> bytes:
        """Return the problem as bytes. Responses to the same problem share them.

        Raises:
            Exception: whatever the class of a problem raises that cannot be pickled.
        """
        found = self._pickled.get(id(problem))  # the items keep the problem, so that its id stays its own
        if found is None:
            found = self._pickled[id(problem)] = pickle.dumps(problem)
        return found

    async def verdicts(self) -> AsyncIterator[IndexedVerdicts]:
        """Yield all verdicts, in lists of those that have arrived in the meantime."""
        while self._missing or self._arrived:
            await self._changed.wait()
            self._changed.clear()
            arrived, self._arrived = self._arrived, []
            yield arrived


@dataclass(slots=True, eq=False)
class Item:
    """One response in the queue."""

    call: Call
    index: int
    problem: Any
    response: str
    alone: bool = False
    """True if it may have ended a process. It is then scored in a batch of one, which shows if it does so again."""

    def settle(self, verdict: Verdict) -> None:
        self.call.settle(self.index, verdict)
