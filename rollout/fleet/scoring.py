"""Has what the workers sampled judged, and hands it in.

Each call of a reward actor costs the controller more than the responses in it. With many workers responses come all the
time: those of all workers that come within `BETWEEN_CALLS_S` travel in one call. When little comes nothing waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from cluster.core.types import Sampled, ScoringRequest, Verdict
from reward.service import RewardPool
from rollout.fleet.scheduler import Scheduler

BETWEEN_CALLS_S = 0.02
"""At least."""


class _Waiting(NamedTuple):
    """Who sampled what, and what was asked."""

    process: str
    sampled: Sampled
    problem: Any


class ScoringQueue:
    """Usage:
    judging = ScoringQueue(rewards, dispatch, background)
    judging.add("rollout-0.0", sampled, problems)    # goes to `dispatch` as the verdicts come

    A verifier that fails is nobody's failure but the run's: it is raised in `background`.
    """

    def __init__(self, rewards: RewardPool, dispatch: Scheduler, background: asyncio.TaskGroup) -> None:
        self._rewards = rewards
        self._scheduler = dispatch
        self._background = background
        self._waiting: list[_Waiting] = []
        self._next_call_at = 0.0

    def add(self, process: str, sampled: Sequence[Sampled], problems: Sequence[Any]) -> None:
        """`problems` are what was asked, in the order of `sampled`."""
        if not self._waiting:
            self._background.create_task(self._score_soon())
        self._waiting += [
            _Waiting(process, one, problem) for one, problem in zip(sampled, problems, strict=True)
        ]

    async def _score_soon(self) -> None:
        await asyncio.sleep(self._next_call_at - time.monotonic())
        self._next_call_at = time.monotonic() + BETWEEN_CALLS_S
        waiting, self._waiting = self._waiting, []
        answers = [
            ScoringRequest(one.problem, one.sampled.response.text, one.sampled.response.finish_reason)
            for one in waiting
        ]
        async for placed in self._rewards.score(answers):
            self._deliver([(waiting[place], verdict) for place, verdict in placed])

    def _deliver(self, judged: Sequence[tuple[_Waiting, Verdict]]) -> None:
        by_process: defaultdict[str, list[tuple[Sampled, Verdict]]] = defaultdict(list)
        for one, verdict in judged:
            by_process[one.process].append((one.sampled, verdict))
        for process, pairs in by_process.items():
            self._scheduler.deliver(process, [one for one, _ in pairs], [verdict for _, verdict in pairs])
