"""The controller: the one loop that is the training run. Read this first.

    ┌──────────────────────────────────────────────────────────────────────────────┐
    │                                                                              │
    ▼                                                                              │
admit prompts ─▶ collect scored groups ─▶ weigh the batch ─▶ learn ─▶ publish ─▶ settle
    │                     ▲               (A, α, L̄: global)              │
    ▼                     │                                              ▼
work buffer ─lease─▶ rollout workers ─▶ reward actors          workers pull the version

step            waits for                            is unblocked by
admit           nothing (takes the free slots)       settle frees slots
collect         a batch of scored groups             the fleet, which samples and scores on its own; with dynamic
                                                     sampling groups that teach nothing are dropped and replaced
learn           the learner ranks                    —
publish         the learner ranks, and a broadcast   nobody waits for a worker that does not come: each takes or
                to the workers if there is one       pulls the version before it leases again
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from cluster.core.config import RunConfig
from cluster.core.types import Prompt, ScoredGroup
from cluster.metrics.batch import batch_distributions, batch_metrics
from cluster.metrics.evaluation import evaluation_metrics
from cluster.run_state.checkpoints import Checkpoint, CheckpointStore, learner_state
from cluster.run_state.progress import Progress
from cluster.tracking import Tracker
from cluster.training.batch import Batch, BatchCollector
from cluster.training.guards import refuse_failed_verdicts
from cluster.training.prompt_source import PromptSource
from learner.engine.group import LearnerGroup
from learner.objective.training_batch import build_training_batch
from learner.state.state_files import CheckpointError
from rollout.fleet.buffer import WorkBuffer
from rollout.fleet.fleet import RolloutFleet


class LogprobGapError(RuntimeError):
    """Sampler and learner do not compute the same policy: what would be learned is not what was sampled."""


class MissingLogprobsError(RuntimeError):
    """The sampler does not say how likely it found what it sampled."""


MAX_MISSING_LOGPROBS_FRACTION = 0.01
"""Of a batch's tokens. A few that lack their log-probability are left out of the loss; more mean that something is
broken."""


class Controller:
    """Wires the parts and runs the loop. `step` counts batches learned from, and is the version of the published
    weights."""

    def __init__(
        self,
        config: RunConfig,
        source: PromptSource,
        eval_prompts: Sequence[Prompt],
        fleet: RolloutFleet,
        learner: LearnerGroup,
        checkpoints: CheckpointStore,
        tracker: Tracker,
        start: Checkpoint | None = None,
    ) -> None:
        self._config = config
        self._source = source
        self._eval_prompts = eval_prompts
        self._fleet = fleet
        self._learner = learner
        self._checkpoints = checkpoints
        self._tracker = tracker
        self._start = start
        rollout = config.rollout
        self._buffer = WorkBuffer(rollout.prompts_per_step, rollout.max_staleness, rollout.oversampling)
        self._times_s: dict[str, float] = defaultdict(float)
        self._distributions: dict[str, np.ndarray] = {}
        """Of the batch that is being learned from."""
        self._started = time.monotonic()
        self.step = 0
        self.pass_at_1: dict[int, float] = {}
        """By step."""

    async def run(self) -> None:
        """Train until the configured number of steps, from the checkpoint `start` if there is one.

        Raises:
            CheckpointError: it is of another model or other prompts, or a new one cannot be written.
            LogprobGapError: what its name says.
        """
        await self._restore()
        while self.step < self._config.steps:
            with self._timed("step"):
                metrics, batch = await self._train_one_batch()
            self._fleet.adapt_size(waited_s=self._times_s["rollout"], step_s=self._times_s["step"])
            if self._due(self._config.evaluation.every_steps):
                if self.step < self._config.steps:
                    self._admit()  # workers that have nothing to do for the evaluation go on with the next batch
                metrics |= await self._evaluate()
            # Before the checkpoint: a step that a resumed run does not do again has its row, and one that it does again
            # gets a new one.
            self._log(metrics, batch)
            del batch  # all that was sampled for it, while the next one comes
            if self._due(self._config.checkpoint.every_steps):
                await self._save()
        if self.step not in self.pass_at_1:  # resumed when all was done but for saying so
            await self._evaluate()

    async def _train_one_batch(self) -> tuple[dict[str, float], Batch]:
        """One turn of the loop: its metrics, and what was learned from."""
        self._admit()
        tokens_before = self._fleet.sampled_tokens
        with self._timed("rollout"):
            batch = await self._collect()
        sampled_tokens = self._fleet.sampled_tokens - tokens_before
        self._refuse_failed_verdicts(batch.sampled, f"in step {self.step + 1}")
        metrics = batch_metrics(batch.sampled, learner_version=self.step)
        metrics["reward/dropped_fraction"] = batch.dropped_fraction
        assert metrics["staleness/max"] <= self._config.rollout.max_staleness, (
            "a batch leaves nothing to grow too old"
        )
        refuse_missing_logprobs(metrics, self.step + 1)

        with self._timed("learn"):
            await self._fleet.rest()
            metrics |= await self._learn(batch.groups)
        self._refuse_logprob_gap(metrics)
        with self._timed("publish"):
            await self._publish(self.step + 1)
        self.step += 1
        self._buffer.settle(batch.prompt_ids)

        if self._due(self._config.evaluation.every_steps):
            self._tracker.transcripts(self.step, batch.sampled)
        metrics["throughput/rollout_tokens_per_s"] = sampled_tokens / max(self._times_s["rollout"], 1e-9)
        metrics["throughput/learner_tokens_per_s"] = metrics.pop("learner_tokens") / self._times_s["learn"]
        return metrics, batch

    def _admit(self) -> None:
        """Fill the free slots; the fleet goes to work on them at once."""
        while self._buffer.free_slots:
            self._buffer.admit(self._source.next())
        self._fleet.feed(self._buffer)

    async def _collect(self) -> Batch:
        """Wait until there is a batch. With dynamic sampling groups are dropped and prompts admitted meanwhile."""
        rollout = self._config.rollout
        collector = BatchCollector(
            self._buffer,
            self._source.next,
            self.step,
            rollout.prompts_per_step,
            rollout.dynamic_sampling_limit,
        )
        while (batch := collector.take()) is None:
            self._fleet.feed(self._buffer)
            await self._fleet.wait_until(collector.has_news)
        return batch

    async def _learn(self, groups: Sequence[ScoredGroup]) -> dict[str, float]:
        """Each mini-batch is weighed as a whole before the ranks see any of it."""
        size = len(groups) // self._config.learner.mini_batches
        max_response_tokens = self._config.rollout.max_response_tokens
        mini_batches = [
            build_training_batch(groups[start : start + size], self._config.objective, max_response_tokens)
            for start in range(0, len(groups), size)
        ]
        self._distributions = batch_distributions(groups, mini_batches)
        weighed = {
            key: sum(batch.metrics[key] for batch in mini_batches) / len(mini_batches)
            for key in mini_batches[0].metrics
        }
        return weighed | await self._learner.learn(mini_batches)

    async def _publish(self, version: int) -> None:
        await self._fleet.publish(await self._learner.publish(version))

    async def _evaluate(self) -> dict[str, float]:
        with self._timed("evaluate"):
            groups = await self._fleet.sample(self._eval_prompts)
        self._refuse_failed_verdicts(groups, f"in the evaluation at step {self.step}")
        metrics = evaluation_metrics(groups)
        self.pass_at_1[self.step] = metrics["eval/pass_at_1"]
        self._tracker.evaluation(self.step, groups)
        return metrics

    async def _restore(self) -> None:
        """Begin where the checkpoint ended, or at the beginning. Publishing comes first: the workers wait for it."""
        if self._start is None:
            await self._publish(version=0)
            self._admit()
            self._log(await self._evaluate())
            return
        path, progress = self._start.path, self._start.progress
        if progress.data != self._source.fingerprint:
            raise CheckpointError(
                f"{path}: cannot go on from this checkpoint: the training prompts are not those that it counts (seed, "
                "task.* or the tokenizer changed). Set them back, or train under another name"
            )
        await self._learner.load(learner_state(path), self._checkpoints.scratch)
        self.step = progress.step
        self.pass_at_1[0] = progress.first_pass_at_1
        self._started -= progress.elapsed_s
        self._source.resume(progress.position, progress.in_flight)
        self._buffer.restore(progress.trained_prompts, progress.dropped_prompts)
        await self._publish(self.step)

    async def _save(self) -> None:
        with self._timed("checkpoint"), self._checkpoints.attempt(self.step) as path:
            sealed = await self._learner.save(learner_state(path))
            progress = Progress(
                step=self.step,
                position=self._source.position,
                in_flight=(*self._buffer.in_flight, *self._source.coming_again),
                trained_prompts=self._buffer.trained_prompts,
                first_pass_at_1=self.pass_at_1[0],
                elapsed_s=self.elapsed_s,
                data=self._source.fingerprint,
                wandb_run_id=self._tracker.wandb_run_id,
                dropped_prompts=dict(self._buffer.dropped_prompts),
            )
            # In a thread: the fleet goes on meanwhile.
            await asyncio.to_thread(self._checkpoints.commit, path, progress, sealed)
        self._tracker.checkpoint(self.step, path)

    @property
    def elapsed_s(self) -> float:
        """Time spent training, over all resumptions."""
        return time.monotonic() - self._started

    def _due(self, every_steps: int) -> bool:
        return self.step % every_steps == 0 or self.step == self._config.steps

    def _refuse_logprob_gap(self, metrics: dict[str, float]) -> None:
        """On equal weights the two engines must agree; on stale samples a gap is the policy's own movement."""
        gap, limit = metrics["logprob_gap/mean"], self._config.learner.max_logprob_gap
        if metrics["staleness/max"] == 0 and not gap <= limit:
            raise LogprobGapError(
                f"in step {self.step + 1} sampler and learner differ by {gap:.3g} per log-probability in mean "
                f"(learner.max_logprob_gap: {limit:g}). Check model.dtype and rollout.temperature."
            )

    def _refuse_failed_verdicts(self, groups: Sequence[ScoredGroup], where: str) -> None:
        refuse_failed_verdicts(groups, self._config.reward.max_error_fraction, where)

    def _log(self, metrics: dict[str, float], batch: Batch | None = None) -> None:
        batch = batch or Batch(())
        self._tracker.log(
            self.step,
            metrics | self._state_metrics(),
            batch.prompt_ids,
            batch.dropped_ids,
            self._distributions,
        )
        self._distributions = {}
        self._times_s.clear()  # that of a checkpoint is in the next row

    def _state_metrics(self) -> dict[str, float]:
        state = self._fleet.state
        return {
            "fleet/healthy_workers": float(state.started_workers),
            "fleet/workers": float(state.size),
            "fleet/restarts": self._tracker.restarts_before + state.restarts,
            "logprob_gap/probe_max": self._fleet.take_probe_gap(),
            "progress/weight_version": float(self.step),
            "progress/epoch": float(self._source.epoch),
            "progress/prompts_trained": float(self._buffer.trained_prompts),
            "progress/prompts_dropped": float(sum(self._buffer.dropped_prompts.values())),
            **{f"time/{part}_s": seconds for part, seconds in self._times_s.items()},
        }

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._times_s[part] += time.monotonic() - started


def refuse_missing_logprobs(metrics: Mapping[str, float], step: int) -> None:
    """Let a batch through of which nearly all tokens have a log-probability.

    Raises:
        MissingLogprobsError: of more than `MAX_MISSING_LOGPROBS_FRACTION` of the tokens there is none.
    """
    share = metrics["logprob_gap/missing_fraction"]
    if share > MAX_MISSING_LOGPROBS_FRACTION:
        raise MissingLogprobsError(
            f"in step {step} the sampler gave no log-probability for {share:.1%} of the tokens (more than "
            f"{MAX_MISSING_LOGPROBS_FRACTION:.0%} stop a run). See logs/rollout-*.log in the run directory."
        )
