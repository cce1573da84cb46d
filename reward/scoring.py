"""Scoring, as an actor and as a pool of them.

A verifier that raises gives the verdict "error": such a response leaves its group's statistics and is counted, it
is not a 0.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from cluster.contracts import Group, Response, ScoredGroup, Verdict
from reward.task import Task
from reward.tasks import build_task

logger = logging.getLogger(__name__)


def judge(task: Task, problem: Any, response: Response, cut_off_is_wrong: bool) -> Verdict:
    """The task's verdict, or the verdict that its verifier failed."""
    if cut_off_is_wrong and response.finish_reason == "length":
        return Verdict(outcome="wrong", reward=0.0, answer=None, reason="cut off before it came to an end")
    try:
        return task.verify(problem, response.text)
    except Exception as error:
        logger.exception("the verifier failed on %r", response.text[:200])
        return Verdict(outcome="error", reward=0.0, answer=None, reason=f"{type(error).__name__}: {error}")


class RewardActor:
    """Judges responses. It has no state, so Ray may restart it and send a call again."""

    def __init__(self, task_name: str, task_options: Mapping[str, Any], cut_off_is_wrong: bool) -> None:
        self._task = build_task(task_name, task_options)
        self._cut_off_is_wrong = cut_off_is_wrong

    def score(self, group: Group) -> ScoredGroup:
        problem = group.prompt.problem
        verdicts = (
            judge(self._task, problem, response, self._cut_off_is_wrong) for response in group.responses
        )
        return ScoredGroup(group, tuple(verdicts))


class RewardPool:
    """Spreads groups over the reward actors in turn."""

    def __init__(self, actors: Sequence[ray.actor.ActorHandle], timeout_s: float) -> None:
        self._actors = itertools.cycle(actors)
        self._timeout_s = timeout_s

    async def score(self, group: Group) -> ScoredGroup:
        """The group with its verdicts.

        Raises:
            TimeoutError: no answer within the deadline.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await next(self._actors).score.remote(group)
        except TimeoutError:
            raise TimeoutError(
                f"the reward actor did not score prompt {group.prompt.id} "
                f"within {self._timeout_s:g} s (reward.timeout_s)"
            ) from None
