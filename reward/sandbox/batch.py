"""One batch under the eyes of its keeper: what comes back is settled, what overruns or breaks is dealt with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.core.types import Verdict
from reward.sandbox.channel import ProtocolError, unpacked
from reward.sandbox.process import ProcessFailedError, VerifierProcess
from reward.sandbox.recipe import Limits

PATIENCE_S = 0.04
"""How long a process may be silent before what it has not begun is given to others."""


class Call:
    """Responses that somebody waits for. Their verdicts are handed over as they come."""

    def __init__(self, responses: int) -> None:
        self._missing = set(range(responses))
        self._arrived: list[tuple[int, Verdict]] = []
        self._news = asyncio.Event()

    def settle(self, index: int, verdict: Verdict) -> None:
        """The first verdict on a response counts."""
        if index in self._missing:
            self._missing.remove(index)
            self._arrived.append((index, verdict))
            self._news.set()

    async def verdicts(self) -> AsyncIterator[list[tuple[int, Verdict]]]:
        """All of them, in lists of those that have come meanwhile."""
        while self._missing or self._arrived:
            await self._news.wait()
            self._news.clear()
            arrived, self._arrived = self._arrived, []
            yield arrived


@dataclass(slots=True, eq=False)
class Item:
    """One response to judge."""

    call: Call
    index: int
    problem: Any
    response: str
    alone: bool = False
    """It may have ended a process, and is judged in a batch of its own to see whether it does so again."""

    def settle(self, verdict: Verdict) -> None:
        self.call.settle(self.index, verdict)


class Batch:
    """Items that a process was asked to judge. `outstanding` are those whose fate is still open."""

    def __init__(
        self,
        process: VerifierProcess,
        items: Sequence[Item],
        limits: Limits,
        put_back: Callable[[Collection[Item]], None],
    ) -> None:
        self._process = process
        self._items = items
        self._limits = limits
        self._put_back = put_back
        self.outstanding = dict(enumerate(items))

    async def run(self) -> bool:
        """Until nothing is outstanding. Returns whether the process is fit for another batch."""
        try:
            self._process.ask([(item.problem, item.response) for item in self._items])
            while True:
                try:
                    reply = await self._process.reply(min(PATIENCE_S, max(self._time_left_s(), 0.001)))
                except TimeoutError:
                    if self._overrun():
                        return False
                else:
                    self._settle(reply)
                    if reply.get("done"):
                        return not reply.get("children")
        except ProcessFailedError as failure:
            self._blame(str(failure))
            return False

    def _time_left_s(self) -> float:
        return self._limits.timeout_s - (time.monotonic_ns() - self._process.progress.since_ns) / 1e9

    def _settle(self, reply: dict[str, Any]) -> None:
        try:
            entries = reply.get("verdicts")
            if not isinstance(entries, list):
                raise ProtocolError("a reply without verdicts")
            for index, verdict in (unpacked(entry, len(self._items)) for entry in entries):
                if item := self.outstanding.pop(index, None):
                    item.settle(verdict)
            if reply.get("done") and self.outstanding:
                raise ProtocolError("too few verdicts")
        except ProtocolError as error:
            raise ProcessFailedError(f"the verifier process sent {error}") from None

    def _overrun(self) -> bool:
        """The process was silent. What it has not begun is given back; what it is at may be out of time."""
        running = self._process.progress.current
        self._process.progress.cut = running.stop
        self._put_back([self.outstanding.pop(i) for i in list(self.outstanding) if i not in running])
        if self._time_left_s() <= 0:
            reason = f"no verdict within {self._limits.timeout_s:g} s (reward.verifier_timeout_s)"
            if len(self.outstanding) == 1:
                self._conclude(Verdict("timeout", 0.0, None, reason))
            else:  # judged in one call; one of them may be to blame
                self._suspect()
            return True
        if self._process.started() > self._limits.child_processes:
            raise ProcessFailedError(
                f"the verifier had more than {self._limits.child_processes} processes running"
            )
        return False

    def _blame(self, reason: str) -> None:
        """The process is gone. An item that was alone, for the second time, did it; of others it is not known."""
        if len(self.outstanding) == 1 and next(iter(self.outstanding.values())).alone:
            self._conclude(Verdict("error", 0.0, None, reason))
        else:
            self._suspect()

    def _conclude(self, verdict: Verdict) -> None:
        _, item = self.outstanding.popitem()
        item.settle(verdict)

    def _suspect(self) -> None:
        for item in self.outstanding.values():
            item.alone = True
        suspects = list(self.outstanding.values())
        self.outstanding.clear()
        self._put_back(suspects)
