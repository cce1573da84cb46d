"""Scheduling: which worker samples which prompt, and how its responses are scored and delivered. No Ray.

    WorkBuffer ─lease─▶ worker ─responses─▶ ScoringQueue ─verdicts─▶ Scheduler.deliver ─▶ WorkBuffer

A worker is woken only by announcements that concern it, not by every response of every other worker: otherwise N
workers would cost N² wake-ups.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from cluster.core.protocols import ResponseScorer
from cluster.core.types import Prompt, Sampled, ScoringRequest, Verdict
from rollout.fleet.buffer import WorkBuffer

BETWEEN_CALLS_S = 0.02
"""The shortest time between two calls of the reward actors."""


class Scheduler:
    """The fleet's work buffers, in the order of their urgency, and the announcements about them.

    Usage:
        scheduler.feed(buffer)                                # lasting work, last in line
        with scheduler.ahead(buffer):                         # first in line, while the block runs
            await scheduler.wait_until(lambda: buffer.scored_groups == len(prompts))
    """

    def __init__(self) -> None:
        self._buffers: list[WorkBuffer] = []
        self._offers: dict[WorkBuffer, int] = {}
        self._waiting: dict[str | None, set[asyncio.Event]] = {}
        self._sampled_tokens = 0

    @property
    def sampled_tokens(self) -> int:
        """The number of tokens in all responses that were delivered."""
        return self._sampled_tokens

    @property
    def waiting_prompts(self) -> int:
        """The number of prompts in all buffers that can be leased."""
        return sum(buffer.waiting_prompts for buffer in self._buffers)

    def announce(self, process: str | None = None) -> None:
        """Wake the tasks that wait for news: all of them, or those that wait for news of `process` or for any news."""
        for listener in self._waiting if process is None else (process, None):
            for event in self._waiting.get(listener, ()):
                event.set()

    async def news(self, process: str | None = None) -> None:
        """Return at the next announcement; if `process` is given, at the next one that concerns it."""
        event = asyncio.Event()
        waiting = self._waiting.setdefault(process, set())
        waiting.add(event)
        try:
            await event.wait()
        finally:
            waiting.discard(event)
            if not waiting:
                self._waiting.pop(process, None)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds. It is evaluated after every announcement.

        There is no deadline here, because every piece of work has its own: it ends in a group, in the replacement of a
        worker, or in the end of the run.
        """
        while not condition():
            await self.news()

    def feed(self, buffer: WorkBuffer) -> None:
        """Work on the prompts that wait in `buffer`, now and later. Call it again after each admission or extension."""
        if buffer not in self._offers:
            self._buffers.append(buffer)
        if self._offers.get(buffer) != buffer.offers:
            self._offers[buffer] = buffer.offers
            self.announce()

    @contextmanager
    def ahead(self, buffer: WorkBuffer) -> Iterator[None]:
        """Work on `buffer` before all other buffers while the block runs."""
        self._buffers.insert(0, buffer)
        self.announce()
        try:
            yield
        finally:
            self._buffers.remove(buffer)

    def lease(self, process: str, limit: int, version: int) -> list[Prompt]:
        """Lease up to `limit` prompts of the first buffer that has any to a process that serves `version`."""
        for buffer in self._buffers:
            if limit > 0 and buffer.waiting_prompts:
                return buffer.lease(process, limit, version)
        return []

    def leases(self, process: str) -> int:
        """Return the number of prompts that `process` holds."""
        return sum(buffer.leases(process) for buffer in self._buffers)

    def return_leases(self, process: str) -> list[str]:
        """Make everything that `process` holds available to other processes. Return the prompts' ids."""
        returned = [prompt_id for buffer in self._buffers for prompt_id in buffer.return_leases(process)]
        if returned:
            self.announce()
        return returned

    def deliver(self, process: str, sampled: Sequence[Sampled], verdicts: Sequence[Verdict]) -> None:
        """Hand in scored responses. A response whose lease was returned meanwhile is dropped: its prompt is sampled
        again."""
        for response, verdict in zip(sampled, verdicts, strict=True):
            if any(
                buffer.deliver(process, response.prompt_id, response.index, response.response, verdict)
                for buffer in self._buffers
            ):
                self._sampled_tokens += len(response.response.token_ids)
        self.announce(process)


class _Waiting(NamedTuple):
    """A response that waits for its verdict."""

    process: str
    """The process that sampled it."""
    sampled: Sampled
    problem: Any


class ScoringQueue:
    """Sends sampled responses to the reward actors, and delivers them with their verdicts.

    A call of a reward actor costs the controller more than the responses in it. So the responses of all workers that
    arrive within `BETWEEN_CALLS_S` travel in one call. When few responses arrive, none waits.

    Usage:
        queue = ScoringQueue(scorer, scheduler, background)
        queue.add("rollout-0.0", sampled, problems)    # goes to `scheduler` as the verdicts arrive

    A verifier that fails is not a worker's failure: its error is raised in `background`, and ends the run.
    """

    def __init__(self, scorer: ResponseScorer, scheduler: Scheduler, background: asyncio.TaskGroup) -> None:
        self._scorer = scorer
        self._scheduler = scheduler
        self._background = background
        self._waiting: list[_Waiting] = []
        self._next_call_at = 0.0

    def add(self, process: str, sampled: Sequence[Sampled], problems: Sequence[Any]) -> None:
        """Score responses of `process`. `problems` are the problems that they answer, in the same order."""
        if not self._waiting:
            self._background.create_task(self._score_soon())
        self._waiting += [
            _Waiting(process, response, problem) for response, problem in zip(sampled, problems, strict=True)
        ]

    async def _score_soon(self) -> None:
        await asyncio.sleep(self._next_call_at - time.monotonic())
        self._next_call_at = time.monotonic() + BETWEEN_CALLS_S
        waiting, self._waiting = self._waiting, []
        requests = [
            ScoringRequest(entry.problem, entry.sampled.response.text, entry.sampled.response.finish_reason)
            for entry in waiting
        ]
        async for verdicts in self._scorer.score(requests):
            self._deliver([(waiting[index], verdict) for index, verdict in verdicts])

    def _deliver(self, scored: Sequence[tuple[_Waiting, Verdict]]) -> None:
        by_process: defaultdict[str, list[tuple[Sampled, Verdict]]] = defaultdict(list)
        for entry, verdict in scored:
            by_process[entry.process].append((entry.sampled, verdict))
        for process, pairs in by_process.items():
            self._scheduler.deliver(
                process, [sampled for sampled, _ in pairs], [verdict for _, verdict in pairs]
            )
