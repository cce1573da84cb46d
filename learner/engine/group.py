"""All learner ranks, spoken to as one. A thin shell: it spreads samples, waits with a deadline, and adds up what the
ranks say."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from cluster.core.actor_options import LearnerOptions
from cluster.core.types import PolicyVersion, TrainingBatch
from cluster.core.weight_channel import ChannelSpec
from learner.engine.process_setup import refuse_shared_devices
from learner.engine.statistics import learner_metrics
from learner.model.batching import shard
from learner.state.state_files import CheckpointError, FileRecord


class LearnerStartError(RuntimeError):
    """The ranks could not start, for a reason that the user can mend."""


class LearnerGroup:
    """M DeepSpeed ranks. Without `offers_weights` what they publish stays with them, to be broadcast.

    Usage:
        learner = LearnerGroup(actors, options)
        await learner.start()
        metrics = await learner.learn([weighed])
        policy = await learner.publish(version=1)
    """

    def __init__(
        self, ranks: Sequence[ray.actor.ActorHandle], options: LearnerOptions, *, offers_weights: bool = True
    ) -> None:
        self._ranks = ranks
        self._offers_weights = offers_weights
        self._options = options
        self._config = options.learner

    async def start(self) -> list[int]:
        """Build all engines. Returns the process ids, by rank.

        Raises:
            LearnerStartError: what was asked for cannot be done, or some ranks did not come; says which, in one line.
        """
        try:
            return await self._start(self._config.start_timeout_s)
        except (ValueError, TimeoutError) as error:
            cause = getattr(error, "cause", error)  # what a rank raised, without its stack
            raise LearnerStartError(" ".join(str(cause).split())) from error

    async def _start(self, timeout_s: float) -> list[int]:
        refuse_shared_devices(await self._all("place", timeout_s=timeout_s))
        first = [self._ranks[0].rendezvous.remote()]
        (self._meeting_point,) = await self._gather(first, "rendezvous", timeout_s)
        process_ids = await self._all("start", *self._meeting_point, timeout_s=timeout_s)
        self._packing, *_ = await self._all("packing", timeout_s=timeout_s)
        return process_ids

    async def learn(self, mini_batches: Sequence[TrainingBatch]) -> dict[str, float]:
        """Learn from all mini-batches, `epochs_per_batch` times, an optimizer step each; metrics over all of them."""
        sharded = [shard(batch.samples, len(self._ranks), self._packing) for batch in mini_batches]
        per_rank = [[shards[rank] for shards in sharded] for rank in range(len(self._ranks))]
        references = [rank.learn.remote(work) for rank, work in zip(self._ranks, per_rank, strict=True)]
        results = await self._gather(references, "learn", self._config.step_timeout_s)
        return learner_metrics([step for result in results for step in result], steps=len(results[0]))

    async def publish(self, version: int) -> PolicyVersion:
        """Make the current weights available as `version`: in the object store, or, if the group does not offer them
        there, for `broadcast` and `offer`."""
        policies = await self._all(
            "publish", version, self._offers_weights, timeout_s=self._config.step_timeout_s
        )
        return policies[0]

    async def offer(self, version: int) -> PolicyVersion | None:
        """Put what was published as `version` into the object store after all. None if something was learned since."""
        # Twice: it may come in the middle of a step.
        policies = await self._all("offer", version, timeout_s=2 * self._config.step_timeout_s)
        return policies[0]

    @property
    def meeting_point(self) -> tuple[str, int]:
        """Address and port at which a link to the first rank is made."""
        return self._meeting_point

    async def broadcast(self, spec: ChannelSpec) -> str | None:
        """Send what was published last over a link. Returns what went wrong there, None if nothing did."""
        failures = await self._all("broadcast", spec, timeout_s=self._config.step_timeout_s)
        return failures[0]

    async def export(self, directory: Path) -> None:
        await self._all("export", directory, timeout_s=self._config.step_timeout_s)

    async def save(self, directory: Path) -> dict[Path, FileRecord]:
        """Write the training state under `directory`. Returns all files that were written.

        Raises:
            CheckpointError: it cannot be written.
        """
        with _plain_checkpoint_errors():
            written = await self._all("save", directory, timeout_s=self._config.step_timeout_s)
        return {file: record for files in written for file, record in files.items()}

    async def load(self, directory: Path, scratch: Path) -> None:
        """Restore what `save` wrote, with any number of ranks; `scratch` is a directory for what that may take.

        Raises:
            CheckpointError: it is of another model, or cannot be read with these settings.
        """
        with _plain_checkpoint_errors():
            await self._all("load", directory, scratch, timeout_s=self._config.start_timeout_s)

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


@contextmanager
def _plain_checkpoint_errors() -> Iterator[None]:
    """What a rank says of a checkpoint is one line; Ray would make its traceback of it."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CheckpointError):
            raise error.cause from error
        raise
