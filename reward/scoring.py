"""Scoring, as an actor and as a pool of them.

A verifier that raises gives the verdict "error": such a response leaves its group's statistics and is counted, it
is not a 0.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from cluster.contracts import FinishReason, Verdict
from reward.task import Task
from reward.tasks import build_task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Judgeable:
    """A response as verifiers see it."""

    problem: Any
    text: str
    finish_reason: FinishReason


def judge(task: Task, answer: Judgeable, cut_off_is_wrong: bool) -> Verdict:
    """The task's verdict, or the verdict that its verifier failed."""
    if cut_off_is_wrong and answer.finish_reason == "length":
        return Verdict(outcome="wrong", reward=0.0, answer=None, reason="cut off before it came to an end")
    try:
        return task.verify(answer.problem, answer.text)
    except Exception as error:
        logger.exception("the verifier failed on %r", answer.text[:200])
        return Verdict(outcome="error", reward=0.0, answer=None, reason=f"{type(error).__name__}: {error}")


class RewardActor:
    """Judges responses. It has no state, so Ray may restart it and send a call again."""

    def __init__(self, task_name: str, task_options: Mapping[str, Any], cut_off_is_wrong: bool) -> None:
        self._task = build_task(task_name, task_options)
        self._cut_off_is_wrong = cut_off_is_wrong

    def judge(self, answers: Sequence[Judgeable]) -> list[Verdict]:
        return [judge(self._task, answer, self._cut_off_is_wrong) for answer in answers]


class RewardPool:
    """Spreads responses over the reward actors in turn."""

    def __init__(self, actors: Sequence[ray.actor.ActorHandle], timeout_s: float) -> None:
        self._actors = itertools.cycle(actors)
        self._timeout_s = timeout_s

    async def judge(self, answers: Sequence[Judgeable]) -> list[Verdict]:
        """The verdicts, in the order of the answers.

        Raises:
            TimeoutError: no answer within the deadline.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await next(self._actors).judge.remote(answers)
        except TimeoutError:
            raise TimeoutError(
                f"the reward actor did not judge {len(answers)} responses within {self._timeout_s:g} s "
                "(reward.timeout_s)"
            ) from None
