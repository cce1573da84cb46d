"""Shaping rewards for tasks whose verdicts come from another service."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from cluster.core.types import IndexedVerdicts, Verdict
from reward.pace import Pace
from reward.task import Scorer
from reward.verdicts import failed_verdict


class ShapedScorer:
    """Adds the rewards of one scorer, `shaping`, to the verdicts of another, `scorer`.

    Both score at the same time. A verdict without a known outcome stays as it is. If a response's shaping reward
    cannot be computed, that failure replaces the verdict.
    """

    def __init__(self, scorer: Scorer, shaping: Scorer) -> None:
        self._scorer = scorer
        self._shaping = shaping

    @property
    def pace(self) -> Pace:
        return self._scorer.pace.together_with(self._shaping.pace)

    async def start(self) -> None:
        await self._shaping.start()
        await self._scorer.start()

    async def close(self) -> None:
        await self._scorer.close()
        await self._shaping.close()

    async def score(self, requests: Sequence[tuple[Any, str]]) -> AsyncIterator[IndexedVerdicts]:
        """Yield each verdict as soon as it and its shaping reward are known."""
        verdicts: dict[int, Verdict] = {}
        added: dict[int, Verdict] = {}
        delivered: set[int] = set()
        async for received, arrived in _merged(
            (verdicts, self._scorer.score(requests)), (added, self._shaping.score(requests))
        ):
            received.update(arrived)
            ready = [
                (index, shaped)
                for index, _ in arrived
                if index not in delivered and (shaped := _shaped(verdicts.get(index), added.get(index)))
            ]
            delivered.update(index for index, _ in ready)
            if ready:
                yield ready


def _shaped(verdict: Verdict | None, added: Verdict | None) -> Verdict | None:
    """Return the shaped verdict, or None until both parts that it needs are known."""
    if verdict is None or verdict.outcome not in ("correct", "incorrect"):
        return verdict
    if added is None or added.outcome != "correct":
        return added
    reward = verdict.reward + added.reward
    if not math.isfinite(reward):
        return failed_verdict(f"the reward {verdict.reward:g} plus the shaping {added.reward:g} is {reward}")
    return replace(verdict, reward=reward)


async def _merged(
    *streams: tuple[dict[int, Verdict], AsyncIterator[IndexedVerdicts]],
) -> AsyncIterator[tuple[dict[int, Verdict], IndexedVerdicts]]:
    """Yield the items of all streams as they arrive, each with the dictionary of its stream."""
    waiting = {asyncio.ensure_future(_next(stream)): (received, stream) for received, stream in streams}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                received, stream = waiting.pop(task)
                if (arrived := task.result()) is not None:
                    waiting[asyncio.ensure_future(_next(stream))] = (received, stream)
                    yield received, arrived
    finally:
        for task in waiting:
            task.cancel()


async def _next(stream: AsyncIterator[IndexedVerdicts]) -> IndexedVerdicts | None:
    return await anext(stream, None)
