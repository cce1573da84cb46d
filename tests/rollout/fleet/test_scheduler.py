"""The scoring queue: each verdict is delivered for its own response, and a call scores many responses. The scheduler
announces new work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from cluster.core.types import IndexedVerdicts, Sampled, ScoringRequest, Verdict
from rollout.fleet import scheduler as scheduler_module
from rollout.fleet.buffer import WorkBuffer
from rollout.fleet.scheduler import Scheduler, ScoringQueue
from tests.builders import make_prompt, make_response, make_verdict


@dataclass
class Rewards:
    """A scorer that yields the verdicts of a call one by one, the last first. The reward is the problem."""

    calls: list[int] = field(default_factory=list)

    async def score(self, answers: Sequence[ScoringRequest]) -> AsyncIterator[IndexedVerdicts]:
        self.calls.append(len(answers))
        for index in reversed(range(len(answers))):
            yield [(index, make_verdict(answers[index].problem))]
            await asyncio.sleep(0)


@dataclass
class Delivered:
    """A replacement of the scheduler. It records deliveries by process."""

    by_process: dict[str, list[tuple[str, float]]] = field(default_factory=dict)

    def deliver(self, process: str, sampled: Sequence[Sampled], verdicts: Sequence[Verdict]) -> None:
        pairs = [(one.prompt_id, verdict.reward) for one, verdict in zip(sampled, verdicts, strict=True)]
        self.by_process.setdefault(process, []).extend(pairs)


def sampled(*prompt_ids: str) -> list[Sampled]:
    return [Sampled(prompt_id, 0, make_response()) for prompt_id in prompt_ids]


async def test_every_verdict_is_delivered_with_its_response() -> None:
    rewards, delivered = Rewards(), Delivered()
    async with asyncio.TaskGroup() as background:
        queue = ScoringQueue(cast(Any, rewards), cast(Any, delivered), background)
        queue.add("rollout-0.0", sampled("a", "b"), [1.0, 2.0])
        queue.add("rollout-1.0", sampled("c"), [3.0])
        queue.add("rollout-0.0", sampled("d"), [4.0])
    assert rewards.calls == [4]
    found = {process: sorted(pairs) for process, pairs in delivered.by_process.items()}
    assert found == {"rollout-0.0": [("a", 1.0), ("b", 2.0), ("d", 4.0)], "rollout-1.0": [("c", 3.0)]}


async def test_responses_that_arrive_between_two_calls_are_scored_in_the_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first response, and responses that arrive late, do not wait."""
    monkeypatch.setattr(scheduler_module, "BETWEEN_CALLS_S", 0.2)
    rewards, delivered = Rewards(), Delivered()
    async with asyncio.TaskGroup() as background:
        queue = ScoringQueue(cast(Any, rewards), cast(Any, delivered), background)
        queue.add("rollout-0.0", sampled("a"), [1.0])
        for _ in range(5):
            await asyncio.sleep(0)
        for number in range(20):
            queue.add(f"rollout-{number}.0", sampled("b"), [1.0])
            await asyncio.sleep(0)
    assert rewards.calls == [1, 20]
    assert sum(map(len, delivered.by_process.values())) == 21


async def test_a_failure_of_the_scorer_ends_the_run_and_not_the_worker() -> None:
    class Failing(Rewards):
        async def score(self, answers: Sequence[ScoringRequest]) -> AsyncIterator[IndexedVerdicts]:
            raise RuntimeError("no verdicts")
            yield []

    with pytest.raises(ExceptionGroup, match="unhandled errors") as ended:
        async with asyncio.TaskGroup() as background:
            ScoringQueue(cast(Any, Failing()), cast(Any, Delivered()), background).add(
                "rollout-0.0", sampled("a"), [1.0]
            )
    assert "no verdicts" in str(ended.value.exceptions[0])


async def test_workers_that_wait_hear_of_an_extension() -> None:
    """It is work, although no prompt was admitted."""
    scheduler, buffer = Scheduler(), WorkBuffer(1)
    buffer.admit(make_prompt())
    scheduler.feed(buffer)
    (prompt,) = scheduler.lease("rollout-0", 1, 0)
    sampled = [Sampled(prompt.id, index, make_response()) for index in prompt.sampling.indexes]
    scheduler.deliver("rollout-0", sampled, [make_verdict(0.0)] * len(sampled))
    waiting = asyncio.create_task(scheduler.news("rollout-1"))
    await asyncio.sleep(0)
    scheduler.feed(buffer)
    await asyncio.sleep(0)
    assert not waiting.done(), "there is no news without work"
    buffer.extend(prompt.id, 3)
    scheduler.feed(buffer)
    await asyncio.sleep(0)
    assert waiting.done()
    assert [more.sampling.responses for more in scheduler.lease("rollout-1", 1, 0)] == [3]
