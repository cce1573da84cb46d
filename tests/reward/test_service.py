"""The reward service with real verifier processes: truncated responses, failing verifiers, and actors that restart."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.actor import Actor
from cluster.core.config import RewardConfig, TaskConfig
from cluster.core.types import IndexedVerdicts, ScoringRequest, Verdict
from reward.pace import Pace, Workload
from reward.sandbox.pool import SandboxError
from reward.service import RewardActor, RewardPool, RewardServiceError, scoring_pace
from reward.tasks.countdown.puzzles import Puzzle
from tests.builders import all_verdicts

PUZZLE = Puzzle((3, 5, 7), 38)
CORRECT = ScoringRequest(PUZZLE, "<answer>3+5*7</answer>", "stop")
INCORRECT = replace(CORRECT, text="<answer>3+5+7</answer>")
TRUNCATED = replace(CORRECT, finish_reason="length")


async def immediately(value: Any) -> Any:
    return value


class Handle:
    """An imitation of a Ray handle, for an actor in this process. The items of its streams have to be awaited."""

    def __init__(self, actor: RewardActor) -> None:
        self.received: list[tuple[Any, str]] = []

        class Score:
            @staticmethod
            def remote(requests: Sequence[tuple[Any, str]]) -> Any:
                self.received += requests
                return (immediately(verdicts) async for verdicts in actor.score(requests))

        self.score = Score


@pytest.fixture
async def actor() -> AsyncIterator[RewardActor]:
    actor = RewardActor(TaskConfig(), RewardConfig(processes_per_worker=1), [])
    yield actor
    await actor.close()


@pytest.mark.parametrize("truncated_is_incorrect", [True, False])
async def test_a_truncated_response_is_incorrect_unless_configured_otherwise(
    actor: RewardActor, truncated_is_incorrect: bool
) -> None:
    handle = Handle(actor)
    pool = RewardPool([Actor(handle)], 60.0, truncated_is_incorrect)
    verdicts = await all_verdicts(pool, [TRUNCATED, CORRECT, INCORRECT, TRUNCATED])
    truncated = "incorrect" if truncated_is_incorrect else "correct"
    assert [verdict.outcome for verdict in verdicts] == [truncated, "correct", "incorrect", truncated]
    assert all(verdict.reward == (verdict.outcome == "correct") for verdict in verdicts)
    assert len(handle.received) == (2 if truncated_is_incorrect else 4), "only responses to be read are sent"


async def test_a_failing_verifier_gives_errors_and_not_zeros(actor: RewardActor) -> None:
    requests = [replace(request, problem="not a puzzle") for request in (CORRECT, INCORRECT)]
    verdicts = await all_verdicts(RewardPool([Actor(Handle(actor))], 60.0, True), requests)
    assert [verdict.outcome for verdict in verdicts] == ["error", "error"]
    assert verdicts[0].reason.startswith("AttributeError: ")


async def test_a_reward_actor_that_does_not_respond_is_named() -> None:
    class Silent(RewardActor):
        async def score(self, requests: Sequence[tuple[Any, str]]) -> AsyncIterator[IndexedVerdicts]:
            await asyncio.sleep(600)
            yield []

    pool = RewardPool([Actor(Handle(Silent(TaskConfig(), RewardConfig(), [])))], 0.05, True, Pace(4, 0.05))
    with pytest.raises(
        TimeoutError, match=r"reward actor 0 did not score 1 responses in time.*timeout_s.* 1 res"
    ):
        await all_verdicts(pool, [CORRECT])


async def test_a_long_queue_of_slow_responses_is_no_hang() -> None:
    """Eight calls of 16 responses, each of which takes as long as a response may, wait for two processes."""

    class Slow(RewardActor):
        processes = asyncio.Semaphore(2)

        async def score(self, requests: Sequence[tuple[Any, str]]) -> AsyncIterator[IndexedVerdicts]:
            for index in range(len(requests)):
                async with self.processes:
                    await asyncio.sleep(0.1)
                yield [(index, Verdict("correct", 1.0, None, ""))]

    pool = RewardPool([Actor(Handle(Slow(TaskConfig(), RewardConfig(), [])))], 4.0, True, Pace(2, 0.1))
    scored = await asyncio.gather(*(all_verdicts(pool, [CORRECT] * 16) for _ in range(8)))
    assert [len(verdicts) for verdicts in scored] == [16] * 8


@pytest.mark.parametrize(
    ("task", "pace"),
    [
        (TaskConfig(), Pace(3, 30.0)),
        (TaskConfig(name="http", options={"url": "http://x", "timeout_s": 4, "retries": 2}), Pace(16, 72.0)),
    ],
)
def test_the_pace_of_an_actor_follows_from_its_limits(task: TaskConfig, pace: Pace) -> None:
    assert scoring_pace(task, RewardConfig(processes_per_worker=3)) == pace


@given(st.lists(st.integers(1, 600), min_size=1, max_size=20), st.integers(1, 16))
def test_the_deadline_of_a_call_allows_for_all_responses_that_may_come_first(
    calls: list[int], at_once: int
) -> None:
    load = Workload(Pace(at_once, 1000.0), 100.0)
    deadlines = [load.add(responses) for responses in calls]
    now = time.monotonic()
    for deadline in deadlines:  # nothing has arrived: the first verdict is due
        assert deadline() - now == pytest.approx(1100, abs=50)
    load._heard_at = math.inf
    for deadline in deadlines:  # everything else has arrived: the last verdict is due
        assert deadline() - now == pytest.approx(math.ceil(sum(calls) / at_once) * 1000 + 100, abs=50)


async def test_verdicts_that_a_restarted_actor_left_out_are_requested_again() -> None:
    """Ray continues a stream at its old position, but the restarted actor groups the verdicts differently."""

    class Forgetful(RewardActor):
        calls = 0

        async def score(self, requests: Sequence[tuple[Any, str]]) -> AsyncIterator[IndexedVerdicts]:
            self.calls += 1
            yield [(len(requests) - 1, Verdict("correct", 1.0, str(self.calls), ""))] * 2

    forgetful = Forgetful(TaskConfig(), RewardConfig(), [])
    pool = RewardPool([Actor(Handle(forgetful))], 60.0, True)
    assert [verdict.answer for verdict in await all_verdicts(pool, [CORRECT] * 3)] == ["3", "2", "1"]
    with pytest.raises(RewardServiceError, match="left 1 responses without a verdict"):
        await all_verdicts(pool, [CORRECT] * 4)


async def test_a_verifier_that_cannot_start_is_reported_in_one_line() -> None:
    class Failing:
        """Raises as Ray does for an exception in an actor."""

        @staticmethod
        async def remote(requests: Sequence[tuple[Any, str]]) -> AsyncIterator[Any]:
            raise ray.exceptions.RayTaskError("score", "Traceback …", SandboxError("no module named mine"))
            yield

    handle = Handle(RewardActor(TaskConfig(), RewardConfig(), []))
    handle.score = Failing  # type: ignore[assignment,misc]
    with pytest.raises(RewardServiceError, match=r"^no response can be scored: no module named mine$"):
        await all_verdicts(RewardPool([Actor(handle)], 60.0, True), [CORRECT])
