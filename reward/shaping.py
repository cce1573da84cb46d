"""Rewards that are added to a verdict: weighted functions of the user's, and what adds them where verdicts come from
somewhere else. What is right or wrong stays as the verifier said."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any

from cluster.core.config import ShapingConfig
from cluster.core.types import IndexedVerdicts, Verdict
from reward.functions import Coroutines, load_function
from reward.task import Scorer
from reward.verdicts import number_of


class Shaping:
    """The sum of the weighted functions.

    Raises:
        Exception: whatever the import of a user's module raises.
    """

    def __init__(self, terms: Sequence[ShapingConfig]) -> None:
        self._terms = [(term.weight, load_function(term.function, "problem", "response")) for term in terms]
        self._coroutines = Coroutines()

    def __bool__(self) -> bool:
        return bool(self._terms)

    def reward(self, problem: Any, response: str) -> float:
        """May raise: whatever a function raises, or ValueError where it returned no number."""
        return math.fsum(
            weight * number_of(self._coroutines.result(function(problem, response)))
            for weight, function in self._terms
        )


def shaping_runner(terms: Sequence[ShapingConfig]) -> ShapingRunner:
    """The factory that recipes name."""
    return ShapingRunner(Shaping(terms))


class ShapingRunner:
    """A judge whose verdicts are nothing but the rewards to be added."""

    batched = False

    def __init__(self, shaping: Shaping) -> None:
        self._shaping = shaping

    def score(self, problem: Any, response: str) -> Verdict:
        return Verdict("correct", self._shaping.reward(problem, response), None, "")

    def score_batch(self, problems: Sequence[Any], responses: Sequence[str]) -> Iterator[IndexedVerdicts]:
        raise NotImplementedError("it takes one response at a time")


class ShapedScorer:
    """Verdicts of `scorer`, each with the reward added that `shaping`, a scorer too, gives the same response.

    Both are asked at the same time. A failed verdict stays as it is; one that cannot be shaped is a failure.
    """

    def __init__(self, scorer: Scorer, shaping: Scorer) -> None:
        self._scorer = scorer
        self._shaping = shaping

    async def start(self) -> None:
        await self._shaping.start()
        await self._scorer.start()

    async def close(self) -> None:
        await self._scorer.close()
        await self._shaping.close()

    async def score(self, asked: Sequence[tuple[Any, str]]) -> AsyncIterator[IndexedVerdicts]:
        verdicts: dict[int, Verdict] = {}
        added: dict[int, Verdict] = {}
        given: set[int] = set()
        async for found, placed in _merged(
            (verdicts, self._scorer.score(asked)), (added, self._shaping.score(asked))
        ):
            found.update(placed)
            ready = [
                (place, shaped)
                for place, _ in placed
                if place not in given and (shaped := _shaped(verdicts.get(place), added.get(place)))
            ]
            given.update(place for place, _ in ready)
            if ready:
                yield ready


def _shaped(verdict: Verdict | None, added: Verdict | None) -> Verdict | None:
    """None while it is not known."""
    if verdict is None or verdict.outcome not in ("correct", "incorrect"):
        return verdict
    if added is None or added.outcome != "correct":
        return added
    return replace(verdict, reward=verdict.reward + added.reward)


async def _merged(
    *streams: tuple[dict[int, Verdict], AsyncIterator[IndexedVerdicts]],
) -> AsyncIterator[tuple[dict[int, Verdict], IndexedVerdicts]]:
    """What comes from any of them, each with the dictionary that it belongs to."""
    waiting = {asyncio.ensure_future(_next(stream)): (found, stream) for found, stream in streams}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                found, stream = waiting.pop(task)
                if (placed := task.result()) is not None:
                    waiting[asyncio.ensure_future(_next(stream))] = (found, stream)
                    yield found, placed
    finally:
        for task in waiting:
            task.cancel()


async def _next(stream: AsyncIterator[IndexedVerdicts]) -> IndexedVerdicts | None:
    return await anext(stream, None)
