"""From a response to its verdict, through a real reward actor: what is cut off, and what a failing verifier means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import ray

from cluster.core.config import RewardConfig, TaskConfig
from cluster.core.types import IndexedVerdicts, ScoringRequest, Verdict
from reward.sandbox.pool import SandboxError
from reward.scoring import RewardActor, RewardPool, RewardServiceError
from reward.tasks.countdown.puzzles import Puzzle
from tests.builders import all_verdicts

PUZZLE = Puzzle((3, 5, 7), 38)
RIGHT = ScoringRequest(PUZZLE, "<answer>3+5*7</answer>", "stop")
WRONG = replace(RIGHT, text="<answer>3+5+7</answer>")
CUT_OFF = replace(RIGHT, finish_reason="length")


async def at_once(value: Any) -> Any:
    return value


class Handle:
    """What a Ray handle looks like, around an actor in this process: what it yields has to be awaited."""

    def __init__(self, actor: RewardActor) -> None:
        self.asked: list[tuple[Any, str]] = []

        class VerifierRunner:
            @staticmethod
            def remote(asked: Sequence[tuple[Any, str]]) -> Any:
                self.asked += asked
                return (at_once(placed) async for placed in actor.score(asked))

        self.score = VerifierRunner


@pytest.fixture
async def actor() -> AsyncIterator[RewardActor]:
    actor = RewardActor(TaskConfig(), RewardConfig(processes_per_worker=1), [])
    yield actor
    await actor.close()


@pytest.mark.parametrize("truncated_is_incorrect", [True, False])
async def test_a_response_cut_off_is_wrong_unless_told_otherwise(
    actor: RewardActor, truncated_is_incorrect: bool
) -> None:
    handle = Handle(actor)
    pool = RewardPool([handle], 60.0, truncated_is_incorrect)
    verdicts = await all_verdicts(pool, [CUT_OFF, RIGHT, WRONG, CUT_OFF])
    cut_off = "incorrect" if truncated_is_incorrect else "correct"
    assert [verdict.outcome for verdict in verdicts] == [cut_off, "correct", "incorrect", cut_off]
    assert all(verdict.reward == (verdict.outcome == "correct") for verdict in verdicts)
    assert len(handle.asked) == (2 if truncated_is_incorrect else 4), "only what has to be read travels"


async def test_a_failing_verifier_gives_errors_and_not_wrongs(actor: RewardActor) -> None:
    asked = [replace(answer, problem="no puzzle") for answer in (RIGHT, WRONG)]
    verdicts = await all_verdicts(RewardPool([Handle(actor)], 60.0, True), asked)
    assert [verdict.outcome for verdict in verdicts] == ["error", "error"]
    assert verdicts[0].reason.startswith("AttributeError: ")


async def test_a_reward_actor_that_does_not_answer_is_named() -> None:
    class Silent(RewardActor):
        async def score(self, asked: Sequence[tuple[Any, str]]) -> AsyncIterator[IndexedVerdicts]:
            await asyncio.sleep(600)
            yield []

    pool = RewardPool([Handle(Silent(TaskConfig(), RewardConfig(), []))], 0.05, True)
    with pytest.raises(TimeoutError, match=r"did not judge 1 responses within 0.05 s \(reward.timeout_s\)"):
        await all_verdicts(pool, [RIGHT])


async def test_what_a_restarted_actor_left_out_is_asked_again() -> None:
    """Ray goes on with a stream where it was, though the actor that was started again cuts it in other portions."""

    class Forgetful(RewardActor):
        calls = 0

        async def score(self, asked: Sequence[tuple[Any, str]]) -> AsyncIterator[IndexedVerdicts]:
            self.calls += 1
            yield [(len(asked) - 1, Verdict("correct", 1.0, str(self.calls), ""))] * 2

    forgetful = Forgetful(TaskConfig(), RewardConfig(), [])
    pool = RewardPool([Handle(forgetful)], 60.0, True)
    assert [verdict.answer for verdict in await all_verdicts(pool, [RIGHT] * 3)] == ["3", "2", "1"]
    with pytest.raises(RewardServiceError, match="left 1 responses without a verdict"):
        await all_verdicts(pool, [RIGHT] * 4)


async def test_a_verifier_that_cannot_be_started_is_one_line() -> None:
    class Actor:
        """As Ray raises what was raised in an actor."""

        @staticmethod
        async def remote(asked: Sequence[tuple[Any, str]]) -> AsyncIterator[Any]:
            raise ray.exceptions.RayTaskError("score", "Traceback …", SandboxError("no module named mine"))
            yield

    handle = Handle(RewardActor(TaskConfig(), RewardConfig(), []))
    handle.score = Actor  # type: ignore[assignment,misc]
    with pytest.raises(RewardServiceError, match=r"^no response can be judged: no module named mine$"):
        await all_verdicts(RewardPool([handle], 60.0, True), [RIGHT])
