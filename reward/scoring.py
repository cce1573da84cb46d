"""Scoring, as an actor and as a pool of them.

A verifier that raises, overruns or breaks its process gives the verdict "error" or "timeout": such a response leaves
its group's statistics and is counted, it is not a 0.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from cluster.config import RewardConfig, TaskConfig
from cluster.contracts import FinishReason, Verdict
from reward.scorers import make_scorer
from reward.task import Scorer

logger = logging.getLogger(__name__)

CUT_OFF = Verdict(outcome="wrong", reward=0.0, answer=None, reason="cut off before it came to an end")
_CLOSING_S = 10.0


@dataclass(frozen=True, slots=True)
class Judgeable:
    """A response as verifiers see it."""

    problem: Any
    text: str
    finish_reason: FinishReason


class RewardServiceError(RuntimeError):
    """No response can be judged; the message says why."""


class RewardActor:
    """Judges responses, many calls at a time. It has no state to lose: Ray may restart it and send a call again."""

    def __init__(self, task: TaskConfig, reward: RewardConfig, search_path: Sequence[str]) -> None:
        # A job's modules are in the working directory, which Ray has laid out on this node too.
        self._arguments = (task, reward, [*search_path, os.getcwd()])
        self._scorer: Scorer | None = None
        self._starting = asyncio.Lock()

    async def judge(self, asked: Sequence[tuple[Any, str]]) -> list[Verdict]:
        """One verdict per problem and text, in their order.

        Raises:
            RuntimeError: there can be no verdicts.
        """
        async with self._starting:
            if self._scorer is None:
                scorer = make_scorer(*self._arguments)
                await scorer.start()
                self._scorer = scorer
        verdicts = await self._scorer.judge(asked)
        failures = Counter(verdict.reason for verdict in verdicts if verdict.outcome in ("error", "timeout"))
        for reason, count in failures.items():
            logger.warning("no verdict on %d of %d responses: %s", count, len(asked), reason)
        return verdicts

    async def close(self) -> None:
        """End the verifier processes."""
        async with self._starting:
            if self._scorer is not None:
                await self._scorer.close()


class RewardPool:
    """Spreads what there is to score over the reward actors in turn."""

    def __init__(
        self, actors: Sequence[ray.actor.ActorHandle], timeout_s: float, cut_off_is_wrong: bool
    ) -> None:
        self._actors = actors
        self._next = itertools.cycle(actors)
        self._timeout_s = timeout_s
        self._cut_off_is_wrong = cut_off_is_wrong

    async def judge(self, answers: Sequence[Judgeable]) -> list[Verdict]:
        """The verdicts, in the order of the answers. Only what somebody must read travels.

        Raises:
            TimeoutError: there were none within the deadline.
            RewardServiceError: there will be none.
        """
        cut_off = [self._cut_off_is_wrong and answer.finish_reason == "length" for answer in answers]
        asked = [(a.problem, a.text) for a, ended in zip(answers, cut_off, strict=True) if not ended]
        judged = iter(await self._ask(asked) if asked else [])
        return [CUT_OFF if ended else next(judged) for ended in cut_off]

    async def _ask(self, asked: Sequence[tuple[Any, str]]) -> list[Verdict]:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await next(self._next).judge.remote(asked)
        except TimeoutError:
            raise TimeoutError(
                f"the reward actor did not judge {len(asked)} responses within {self._timeout_s:g} s "
                "(reward.timeout_s); a verdict may take reward.verifier_timeout_s, and "
                "reward.processes_per_worker are at work at a time"
            ) from None
        except ray.exceptions.RayTaskError as error:
            raise RewardServiceError(f"no response can be judged: {error.cause}") from error

    async def close(self) -> None:
        """Let the actors end their processes, if they still can; they are killed afterwards in any case."""
        closing = [actor.close.remote() for actor in self._actors]
        try:
            async with asyncio.timeout(_CLOSING_S):
                await asyncio.gather(*closing)
        except (ray.exceptions.RayError, TimeoutError) as error:
            logger.info("a reward actor could not end its processes by itself: %s", error)
