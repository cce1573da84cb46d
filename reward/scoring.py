"""Scoring, as an actor and as a pool of them.

A verifier that raises, overruns or breaks its process gives the verdict "error" or "timeout": such a response leaves
its group's statistics and is counted, it is not a 0.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import ray

from cluster.core.config import RewardConfig, TaskConfig
from cluster.core.types import IndexedVerdicts, ScoringRequest, Verdict
from reward.scorers import make_scorer
from reward.task import Scorer

logger = logging.getLogger(__name__)

CUT_OFF = Verdict(outcome="incorrect", reward=0.0, answer=None, reason="cut off before it came to an end")
_CLOSING_S = 10.0
_LINGER_S = 0.005
"""What comes within this time travels together."""
_ATTEMPTS = 3


class RewardServiceError(RuntimeError):
    """No response can be judged; the message says why."""


class RewardActor:
    """Judges responses, many calls at a time. It has no state to lose: Ray may restart it and send a call again."""

    def __init__(self, task: TaskConfig, reward: RewardConfig, search_path: Sequence[str]) -> None:
        # A job's modules are in the working directory, which Ray has laid out on this node too.
        self._arguments = (task, reward, [*search_path, os.getcwd()])
        self._scorer: Scorer | None = None
        self._starting = asyncio.Lock()

    async def score(self, asked: Sequence[tuple[Any, str]]) -> AsyncIterator[IndexedVerdicts]:
        """One verdict per problem and text, each with its place, as they come: none waits for another that hangs.

        Raises:
            RuntimeError: there can be no verdicts.
        """
        async with self._starting:
            if self._scorer is None:
                scorer = make_scorer(*self._arguments)
                await scorer.start()
                self._scorer = scorer
        failures: Counter[str] = Counter()
        missing = len(asked)
        async for placed in self._scorer.score(asked):
            failures.update(v.reason for _, v in placed if v.outcome in ("error", "timeout"))
            missing -= len(placed)
            yield placed
            if missing:
                await asyncio.sleep(_LINGER_S)
        for reason, count in failures.items():
            logger.warning("no verdict on %d of %d responses: %s", count, len(asked), reason)

    async def close(self) -> None:
        """End the verifier processes."""
        async with self._starting:
            if self._scorer is not None:
                await self._scorer.close()


class RewardPool:
    """Spreads what there is to score over the reward actors in turn."""

    def __init__(
        self, actors: Sequence[ray.actor.ActorHandle], timeout_s: float, truncated_is_incorrect: bool
    ) -> None:
        self._actors = actors
        self._next = itertools.cycle(actors)
        self._timeout_s = timeout_s
        self._cut_off_is_wrong = truncated_is_incorrect

    async def score(self, answers: Sequence[ScoringRequest]) -> AsyncIterator[IndexedVerdicts]:
        """One verdict per answer, each with its place, as they come. Only what somebody must read travels.

        Raises:
            TimeoutError: some were not there within the deadline.
            RewardServiceError: there will be none.
        """
        cut_off = {
            place
            for place, answer in enumerate(answers)
            if self._cut_off_is_wrong and answer.finish_reason == "length"
        }
        if cut_off:
            yield [(place, CUT_OFF) for place in cut_off]
        missing = [place for place in range(len(answers)) if place not in cut_off]
        deadline = time.monotonic() + self._timeout_s
        # An actor that Ray restarted judges again what it was asked, in other portions: some may be lost.
        for _ in range(_ATTEMPTS):
            if not missing:
                return
            asked = [(answers[place].problem, answers[place].text) for place in missing]
            left = set(missing)
            async for placed in self._ask(asked, deadline):
                known = [(missing[i], verdict) for i, verdict in placed if missing[i] in left]
                left -= {place for place, _ in known}
                yield known
            missing = sorted(left)
        if missing:
            raise RewardServiceError(f"a reward actor left {len(missing)} responses without a verdict")

    async def _ask(self, asked: Sequence[tuple[Any, str]], deadline: float) -> AsyncIterator[IndexedVerdicts]:
        stream = next(self._next).score.remote(asked)
        try:
            while True:
                async with asyncio.timeout(deadline - time.monotonic()):
                    placed = await (await anext(stream))
                yield placed
        except StopAsyncIteration:
            return
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
