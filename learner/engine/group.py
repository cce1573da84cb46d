"""The learner ranks as one object: it shards batches, waits with deadlines, and merges the answers of the ranks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray

from cluster.core.actor import Actor
from cluster.core.actor_options import LearnerOptions
from cluster.core.types import PolicyVersion, TrainingBatch
from learner.engine.finite import NonFiniteError
from learner.engine.process_setup import refuse_shared_devices
from learner.engine.rank import LearnerRank
from learner.engine.statistics import learner_metrics
from learner.model.batching import shard
from learner.state.state_files import CheckpointError, FileRecord

Arguments = ParamSpec("Arguments")
AnswerT = TypeVar("AnswerT")


class LearnerStartError(RuntimeError):
    """The ranks could not start, for a reason that the user can fix."""


class LearnerGroup:
    """M DeepSpeed ranks.

    Usage:
        learner = LearnerGroup(ranks, options)
        await learner.start()
        metrics = await learner.learn([training_batch])
        version = await learner.publish(version=1)
    """

    def __init__(self, ranks: Sequence[Actor[LearnerRank]], options: LearnerOptions) -> None:
        self._ranks = ranks
        self._options = options
        self._config = options.learner

    async def start(self) -> list[int]:
        """Build all engines. Return the process ids, by rank.

        Raises:
            LearnerStartError: if the settings cannot be satisfied, or some ranks did not arrive. The message names them
                in one line.
        """
        try:
            return await self._start(self._config.start_timeout_s)
        except (ValueError, TimeoutError) as error:
            cause = getattr(error, "cause", error)  # the error of a rank, without its stack
            raise LearnerStartError(" ".join(str(cause).split())) from error

    async def _start(self, timeout_s: float) -> list[int]:
        refuse_shared_devices(await self._all(timeout_s, LearnerRank.device))
        first = [self._ranks[0].call(LearnerRank.rendezvous)]
        (self._meeting_point,) = await self._gather(first, "rendezvous", timeout_s)
        process_ids = await self._all(timeout_s, LearnerRank.start, *self._meeting_point)
        self._packing, *_ = await self._all(timeout_s, LearnerRank.packing)
        return process_ids

    async def learn(self, mini_batches: Sequence[TrainingBatch]) -> dict[str, float]:
        """Take one optimizer step per mini-batch and epoch (`epochs_per_batch`). Return metrics over all steps.

        Raises:
            NonFiniteError: if a loss or a gradient norm is NaN or infinite.
        """
        sharded = [shard(batch.samples, len(self._ranks), self._packing) for batch in mini_batches]
        per_rank = [[shards[rank] for shards in sharded] for rank in range(len(self._ranks))]
        references = [
            rank.call(LearnerRank.learn, work) for rank, work in zip(self._ranks, per_rank, strict=True)
        ]
        with _plain_errors():
            results = await self._gather(references, "learn", self._config.step_timeout_s)
        return learner_metrics([step for result in results for step in result], steps=len(results[0]))

    async def publish(self, version: int) -> PolicyVersion:
        """Make the current weights available to the engines as `version`, in the weight transport's way.

        Raises:
            NonFiniteError: if a weight is NaN or infinite.
        """
        with _plain_errors():
            published, *_ = await self._all(self._config.step_timeout_s, LearnerRank.publish, version)
        assert published is not None, "rank 0 answers"
        return published

    async def send(self, version: int, request: Any, *, during_step: bool = False) -> Any:
        """Have the weight transport's sender handle `request` with the weights of `version`.

        Return its answer, or None if the learner has trained since and does not have these weights any more. If the
        call may come in the middle of a step (`during_step`), it also waits for the rest of that step.
        """
        timeout_s = self._config.step_timeout_s * (2 if during_step else 1)
        answer, *others = await self._all(timeout_s, LearnerRank.send, version, request)
        return one_answer(answer, others)

    @property
    def meeting_point(self) -> tuple[str, int]:
        """The address and port of rank 0's store, in which processes find each other."""
        return self._meeting_point

    async def export(self, directory: Path) -> None:
        """Write the current model as a Hugging Face directory."""
        await self._all(self._config.step_timeout_s, LearnerRank.export, directory)

    async def save(self, directory: Path) -> dict[Path, FileRecord]:
        """Write the training state under `directory`. Return all files that were written, with their hashes.

        Raises:
            CheckpointError: if the state cannot be written.
            NonFiniteError: if it contains NaN or infinity.
        """
        with _plain_errors():
            written = await self._all(self._config.step_timeout_s, LearnerRank.save, directory)
        return {file: record for files in written for file, record in files.items()}

    async def load(self, directory: Path, scratch: Path) -> None:
        """Restore a state that `save` wrote, with any number of ranks. `scratch` is a directory for temporary files.

        Raises:
            CheckpointError: if the state is of another model, or cannot be read with these settings.
        """
        with _plain_errors():
            await self._all(self._config.start_timeout_s, LearnerRank.load, directory, scratch)

    async def _all(
        self,
        timeout_s: float,
        method: Callable[Concatenate[LearnerRank, Arguments], AnswerT],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> list[AnswerT]:
        """Call `method` of all ranks at once. Return the answers, by rank."""
        references = [rank.call(method, *arguments, **options) for rank in self._ranks]
        return await self._gather(references, method.__name__, timeout_s)

    @staticmethod
    async def _gather(references: list[Awaitable[AnswerT]], method: str, timeout_s: float) -> list[AnswerT]:
        """Return all answers, or raise the first failure: it does not wait for ranks that wait for a dead one in a
        collective."""
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


def one_answer(answer: Any, others: Sequence[str | None]) -> Any:
    """Return the answer of rank 0, or all failures if there are some in other ranks, each once."""
    if not any(others):
        return answer
    return "; ".join(dict.fromkeys(failure for failure in (answer, *others) if failure))


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise a rank's own error, if it is one line, in place of Ray's, which is a traceback."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CheckpointError | NonFiniteError):
            raise error.cause from error
        raise
