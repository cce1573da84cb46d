"""Scoring, as an actor and as a pool of them.

A verifier that raises, overruns or breaks its process gives the verdict "error" or "timeout": such a response leaves
its group's statistics and is counted, it is not a 0.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import ray

from cluster.config import RewardConfig, TaskConfig
from cluster.contracts import Prompt, Response, Verdict
from reward.scorers import make_scorer
from reward.task import Scorer

logger = logging.getLogger(__name__)

CUT_OFF = Verdict(outcome="wrong", reward=0.0, answer=None, reason="cut off before it came to an end")
_CLOSING_S = 10.0

Question = tuple[Any, Sequence[str]]
"""A problem, and what was answered to it."""


class RewardServiceError(RuntimeError):
    """No response can be judged; the message says why."""


class RewardActor:
    """Judges responses, many calls at a time. It has no state to lose: Ray may restart it and send a call again."""

    def __init__(self, task: TaskConfig, reward: RewardConfig, search_path: Sequence[str]) -> None:
        self._arguments = (task, reward, search_path)
        self._scorer: Scorer | None = None
        self._starting = asyncio.Lock()

    async def judge(self, questions: Sequence[Question]) -> list[list[Verdict]]:
        """One verdict per text, in their order.

        Raises:
            RuntimeError: there can be no verdicts.
        """
        async with self._starting:
            if self._scorer is None:
                scorer = make_scorer(*self._arguments)
                await scorer.start()
                self._scorer = scorer
        return list(await asyncio.gather(*(self._judge(self._scorer, *question) for question in questions)))

    @staticmethod
    async def _judge(scorer: Scorer, problem: Any, texts: Sequence[str]) -> list[Verdict]:
        verdicts = await scorer.judge(problem, texts)
        failures = Counter(verdict.reason for verdict in verdicts if verdict.outcome in ("error", "timeout"))
        for reason, count in failures.items():
            logger.warning("no verdict on %d of %d responses: %s", count, len(texts), reason)
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

    async def judge(self, answers: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        """One verdict per answer, in their order. Only texts travel, and only those that somebody must read.

        They travel together, so a verdict that takes its time holds up those on answers that came with it, for
        `reward.verifier_timeout_s` at most.

        Raises:
            TimeoutError: no verdicts within the deadline.
            RewardServiceError: there will be none.
        """
        verdicts = [CUT_OFF] * len(answers)
        by_prompt: dict[str, list[int]] = defaultdict(list)
        for index, (prompt, response) in enumerate(answers):
            if not (self._cut_off_is_wrong and response.finish_reason == "length"):
                by_prompt[prompt.id].append(index)
        questions = [
            (answers[indices[0]][0].problem, [answers[index][1].text for index in indices])
            for indices in by_prompt.values()
        ]
        found = await self._ask(questions, list(by_prompt)) if questions else []
        for indices, of_prompt in zip(by_prompt.values(), found, strict=True):
            for index, verdict in zip(indices, of_prompt, strict=True):
                verdicts[index] = verdict
        return verdicts

    async def _ask(self, questions: Sequence[Question], prompt_ids: Sequence[str]) -> list[list[Verdict]]:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await next(self._next).judge.remote(questions)
        except TimeoutError:
            raise TimeoutError(
                f"the reward actor did not judge answers to prompt {', '.join(prompt_ids)} within "
                f"{self._timeout_s:g} s (reward.timeout_s); a verdict may take reward.verifier_timeout_s, and "
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
