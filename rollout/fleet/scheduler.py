"""What waits to be sampled, for whoever can sample it: the fleet's work buffers, and the news about them. No Ray.

A worker is told of what concerns it, not of every response of every other: else N workers would cost N² wake-ups.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cluster.core.types import Prompt, Sampled, Verdict
from rollout.fleet.buffer import WorkBuffer


class Scheduler:
    """Buffers in the order of their urgency.

    Usage:
        dispatch.feed(buffer)                                 # lasting work, last in line
        with dispatch.ahead(buffer):                          # first in line, while the block runs
            await dispatch.wait_until(lambda: buffer.scored_groups == len(prompts))
    """

    def __init__(self) -> None:
        self._buffers: list[WorkBuffer] = []
        self._admissions: dict[WorkBuffer, int] = {}
        self._waiting: dict[str | None, set[asyncio.Event]] = {}
        self.sampled_tokens = 0
        """Of all responses that were delivered."""

    def announce(self, worker: str | None = None) -> None:
        """Something happened, to `worker` alone or to everybody: whoever waits for such news looks again. Who waits
        for any news always does."""
        for listener in self._waiting if worker is None else (worker, None):
            for event in self._waiting.get(listener, ()):
                event.set()

    async def news(self, worker: str | None = None) -> None:
        """Return at the next announcement; if `worker` is given, at the next that concerns it."""
        event = asyncio.Event()
        waiting = self._waiting.setdefault(worker, set())
        waiting.add(event)
        try:
            await event.wait()
        finally:
            waiting.discard(event)
            if not waiting:
                self._waiting.pop(worker, None)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds; it is looked at after every announcement.

        There is no deadline here, since all work has one: it ends in a group, or in a worker's replacement, or in the
        end of the run.
        """
        while not condition():
            await self.news()

    def feed(self, buffer: WorkBuffer) -> None:
        """Work on what is waiting in `buffer`, now and later. Call again after admitting prompts."""
        if buffer not in self._admissions:
            self._buffers.append(buffer)
        if self._admissions.get(buffer) != buffer.admissions:
            self._admissions[buffer] = buffer.admissions
            self.announce()

    @contextmanager
    def ahead(self, buffer: WorkBuffer) -> Iterator[None]:
        """Work on `buffer` before all others."""
        self._buffers.insert(0, buffer)
        self.announce()
        try:
            yield
        finally:
            self._buffers.remove(buffer)

    def lease(self, worker: str, limit: int, version: int) -> list[Prompt]:
        """Up to `limit` prompts of the first buffer that has any, for a worker that serves `version`."""
        for buffer in self._buffers:
            if limit > 0 and buffer.waiting_prompts:
                return buffer.lease(worker, limit, version)
        return []

    @property
    def waiting_prompts(self) -> int:
        """In all buffers, to be leased."""
        return sum(buffer.waiting_prompts for buffer in self._buffers)

    def leases(self, worker: str) -> int:
        return sum(buffer.leases(worker) for buffer in self._buffers)

    def return_leases(self, worker: str) -> list[str]:
        """Everything that `worker` holds goes to others. Returns the prompts' ids."""
        returned = [prompt_id for buffer in self._buffers for prompt_id in buffer.return_leases(worker)]
        if returned:
            self.announce()
        return returned

    def deliver(self, worker: str, sampled: Sequence[Sampled], verdicts: Sequence[Verdict]) -> None:
        """Hand in judged responses. Those whose lease was taken back meanwhile are forgotten: others come."""
        for one, verdict in zip(sampled, verdicts, strict=True):
            if any(
                buffer.deliver(worker, one.prompt_id, one.index, one.response, verdict)
                for buffer in self._buffers
            ):
                self.sampled_tokens += len(one.response.token_ids)
        self.announce(worker)
