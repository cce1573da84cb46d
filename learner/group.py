"""All learner ranks, spoken to as one. A thin shell: it spreads rows, waits with a deadline, and adds up what the
ranks say."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from cluster.contracts import Publication
from learner.batching import shard
from learner.engine import LearnerOptions
from learner.statistics import learner_metrics
from learner.weighing import WeighedBatch


class LearnerGroup:
    """M DeepSpeed ranks.

    Usage:
        learner = LearnerGroup(actors, options)
        await learner.start()
        metrics = await learner.learn([weighed])
        publication = await learner.publish(version=1)
    """

    def __init__(self, ranks: Sequence[ray.actor.ActorHandle], options: LearnerOptions) -> None:
        self._ranks = ranks
        self._options = options
        self._config = options.learner

    async def start(self) -> list[int]:
        """Build all engines. Returns the process ids, by rank."""
        (address, port), *_ = await self._all("rendezvous", timeout_s=self._config.start_timeout_s)
        process_ids = await self._all("start", address, port, timeout_s=self._config.start_timeout_s)
        self._packing, *_ = await self._all("packing", timeout_s=self._config.start_timeout_s)
        return process_ids

    async def learn(self, mini_batches: Sequence[WeighedBatch]) -> dict[str, float]:
        """Learn from all mini-batches, `epochs_per_batch` times, an optimiser step each; metrics over all of them."""
        sharded = [shard(batch.rows, len(self._ranks), self._packing) for batch in mini_batches]
        per_rank = [[shards[rank] for shards in sharded] for rank in range(len(self._ranks))]
        references = [rank.learn.remote(work) for rank, work in zip(self._ranks, per_rank, strict=True)]
        results = await self._gather(references, "learn", self._config.step_timeout_s)
        return learner_metrics([step for result in results for step in result], steps=len(results[0]))

    async def publish(self, version: int) -> Publication:
        """Make the current weights available as `version`."""
        publications = await self._all("publish", version, timeout_s=self._config.step_timeout_s)
        return publications[0]

    async def export(self, directory: Path) -> None:
        await self._all("export", directory, timeout_s=self._config.step_timeout_s)

    async def save(self, directory: Path) -> None:
        await self._all("save", directory, timeout_s=self._config.step_timeout_s)

    async def load(self, directory: Path) -> None:
        await self._all("load", directory, timeout_s=self._config.start_timeout_s)

    async def _all(self, method: str, *arguments: Any, timeout_s: float) -> list[Any]:
        references = [getattr(rank, method).remote(*arguments) for rank in self._ranks]
        return await self._gather(references, method, timeout_s)

    @staticmethod
    async def _gather(references: list[Any], method: str, timeout_s: float) -> list[Any]:
        """All ranks' answers, or the first failure: ranks that wait for a dead one in a collective are not waited
        for."""
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.gather(*references)
        except TimeoutError:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
            late = [rank for rank, reference in enumerate(references) if reference not in ready]
            raise TimeoutError(
                f"learner rank(s) {late} did not finish {method!r} within {timeout_s:g} s; "
                "see logs/learner-*.log in the run directory, or raise learner.step_timeout_s / start_timeout_s"
            ) from None
