"""The controller: the one loop that is the training run. Read this file first.

     ┌─────────────────────────────────────────────────────────────────────────┐
     ▼                                                                         │
    admit ─▶ collect ─▶ build training batch ─▶ learn ─▶ publish ─▶ settle ────┘
     │         ▲         (advantages, loss        │         │
     │ prompts │ scored   weights: global)        ▼         ▼
     ▼         │ groups                     learner ranks  rollout workers (new weights)
    work buffer ─── prompts ──▶ rollout workers ─── responses ──▶ reward actors
         ▲                                                              │
         └─────────────────── responses with verdicts ──────────────────┘

step      waits for                                   is unblocked by
admit     nothing; it fills the free slots of the     -
          work buffer
collect   a full batch of scored groups               the fleet, which samples and scores in the background
learn     all learner ranks; before that, with        the learner ranks; the engines, which finish their responses
          `sleep_while_learning`, sleeping engines    and fall asleep
publish   the learner ranks; with the broadcast       the learner ranks; each engine, or its deadline. A worker that
          transport also the engines                  missed a version gets it before it leases another prompt
settle    nothing; it frees the slots of the batch    -

With an adaptive budget, `collect` extends groups without a correct response. With dynamic sampling, it drops groups
with zero reward variance and admits other prompts in their slots. With `rescue.*`, prompts that fail get help when they
are admitted, and all-incorrect groups a replay before `learn`.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from cluster.core.config import RunConfig
from cluster.core.types import Prompt, ScoredGroup
from cluster.metrics.batch import batch_distributions, batch_metrics, budget_metrics
from cluster.metrics.evaluation import evaluation_metrics
from cluster.run_state.checkpoints import Checkpoint, CheckpointStore, learner_state
from cluster.run_state.progress import Progress
from cluster.tracking import Tracker
from cluster.training.batch import (
    Batch,
    BatchCollector,
    mini_batches,
    refuse_broken_probe,
    refuse_failed_verdicts,
    refuse_logprob_gap,
    refuse_missing_logprobs,
    refuse_non_finite_update,
)
from cluster.training.budget import adaptive_budget
from cluster.training.examples import ExamplePrompts
from cluster.training.prompts import PromptSource
from cluster.training.rescue import Rescue
from learner.engine.finite import NonFiniteError
from learner.engine.group import LearnerGroup
from learner.state.state_files import CheckpointError
from rollout.fleet.buffer import WorkBuffer
from rollout.fleet.fleet import RolloutFleet


class Controller:
    """Runs the training loop. `step` is the number of batches trained on, and the version of the published weights."""

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
        examples: ExamplePrompts | None = None,
    ) -> None:
        self._config = config
        self._source = source
        self._eval_prompts = eval_prompts
        self._fleet = fleet
        self._learner = learner
        self._checkpoints = checkpoints
        self._tracker = tracker
        self._start = start
        self._rescue = Rescue(config, examples)
        rollout = config.rollout
        self._buffer = WorkBuffer(rollout.prompts_per_step, rollout.max_staleness, rollout.oversampling)
        self._budget = adaptive_budget(rollout, source.prior)
        self._times_s: dict[str, float] = defaultdict(float)
        self._distributions: dict[str, np.ndarray] = {}
        """The distributions of the batch in training, for the tracker's histograms."""
        self._started = time.monotonic()
        self._sampled_responses = 0
        self.step = 0
        self.pass_at_1: dict[int, float] = {}
        """The pass@1 of each evaluation, by step."""

    async def run(self) -> None:
        """Train until the configured number of steps. Start from the checkpoint `start` if one was given.

        Raises:
            CheckpointError: if the checkpoint belongs to another model or other prompts, or a new checkpoint cannot be
                written.
            BatchNotFilledError, VerifierFailureError, MissingLogprobsError, LogprobGapError: if a batch must not be
                trained on.
            NonFiniteError: if an update has produced NaN or infinity. Nothing of it was published or saved.
        """
        await self._start_or_resume()
        while self.step < self._config.steps:
            with self._timed("step"):
                metrics, batch = await self._train_one_batch()
            self._fleet.adapt_size(waited_s=self._times_s["rollout"], step_s=self._times_s["step"])
            if self._due(self._config.evaluation.every_steps):
                if self.step < self._config.steps:
                    self._admit()  # workers that are not busy with the evaluation start on the next batch
                metrics |= await self._evaluate()
            # Log before saving: then every step up to a checkpoint has its row on the disk, and a resumed run rewrites
            # only the rows of steps that it repeats.
            self._log(metrics, batch)
            del batch  # frees its samples while the next batch is collected
            if self._due(self._config.checkpoint.every_steps):
                await self._save()
        if self.step not in self.pass_at_1:  # resumed from a checkpoint of the last step
            await self._evaluate()

    async def _train_one_batch(self) -> tuple[dict[str, float], Batch]:
        """Do one step of the loop. Return its metrics and its batch."""
        self._admit()
        tokens_before = self._fleet.sampled_tokens
        with self._timed("rollout"):
            batch = await self._collect()
        sampled_tokens = self._fleet.sampled_tokens - tokens_before
        self._sampled_responses += sum(len(group.responses) for group in batch.sampled)
        self._refuse_failed_verdicts(batch.sampled, f"in step {self.step + 1}")
        metrics = batch_metrics(batch.sampled, learner_version=self.step)
        metrics["reward/dropped_fraction"] = batch.dropped_fraction
        if self._budget is not None:
            metrics |= budget_metrics(batch.groups, batch.sampled)
        assert metrics["staleness/max"] <= self._config.rollout.max_staleness, (
            "the work buffer returned a sample that is staler than allowed"
        )
        refuse_missing_logprobs(metrics, self.step + 1)

        groups = self._rescue.with_replays(batch.groups, self.step)
        with self._kept_if_not_finite(groups):
            with self._timed("learn"):
                await self._fleet.rest()
                metrics |= await self._learn(groups)
            refuse_non_finite_update(metrics)
            refuse_logprob_gap(metrics, self._config.logprob_gap_limits.mean, self.step + 1)
            with self._timed("publish"):
                await self._publish(self.step + 1)
        metrics |= self._rescue.observe(batch.sampled, groups, self.step)
        self.step += 1
        metrics |= self._source.observe(batch)
        self._buffer.settle(batch.prompt_ids)

        if self._due(self._config.evaluation.every_steps):
            self._tracker.transcripts(self.step, batch.sampled)
        metrics["throughput/rollout_tokens_per_s"] = sampled_tokens / max(self._times_s["rollout"], 1e-9)
        metrics["throughput/learner_tokens_per_s"] = metrics.pop("learner_tokens") / self._times_s["learn"]
        return metrics, batch

    def _admit(self) -> None:
        """Fill the buffer's free slots with prompts. The fleet starts to sample them at once."""
        while self._buffer.free_slots:
            self._buffer.admit(self._next_prompt())
        self._fleet.feed(self._buffer)

    def _next_prompt(self) -> Prompt:
        return self._rescue.prepare(self._source.next(), self.step)

    async def _collect(self) -> Batch:
        """Wait for a full batch. Meanwhile groups may be extended, or dropped and replaced by other prompts."""
        rollout = self._config.rollout
        collector = BatchCollector(
            self._buffer,
            self._next_prompt,
            self.step,
            rollout.prompts_per_step,
            rollout.dynamic_sampling_limit,
            self._budget,
            lambda group: self._rescue.is_rescued(group, self.step),
        )
        while (batch := collector.take()) is None:
            self._fleet.feed(self._buffer)
            await self._fleet.wait_until(collector.has_news)
        return batch

    async def _learn(self, groups: Sequence[ScoredGroup]) -> dict[str, float]:
        """Train on `groups`, one optimizer step per mini-batch. Return the learner's metrics."""
        batches = mini_batches(groups, self._config)
        self._distributions = batch_distributions(groups, batches)
        mean_metrics = {
            key: sum(batch.metrics[key] for batch in batches) / len(batches) for key in batches[0].metrics
        }
        return mean_metrics | await self._learner.learn(batches)

    async def _publish(self, version: int) -> None:
        """Distribute the learner's weights to the fleet as `version`."""
        published = await self._learner.publish(version)
        refuse_broken_probe(published)
        await self._fleet.publish(published)

    @contextmanager
    def _kept_if_not_finite(self, groups: Sequence[ScoredGroup]) -> Iterator[None]:
        """If the block raises NonFiniteError, write the groups to the run directory, and name it in the error."""
        try:
            yield
        except NonFiniteError as error:
            file = self._tracker.failed_batch(self.step + 1, groups)
            raise NonFiniteError(
                f"in step {self.step + 1}, {error}. Nothing of this step was published or saved, and the batch is in "
                f"{file}. The run can be resumed from its last checkpoint; it then draws other responses. If it fails "
                "again, lower learner.learning_rate, or limit the rewards of the task"
            ) from error

    async def _evaluate(self) -> dict[str, float]:
        """Sample the evaluation prompts with the published weights. Return the metrics."""
        with self._timed("evaluate"):
            groups = await self._fleet.sample(self._eval_prompts)
        self._refuse_failed_verdicts(groups, f"in the evaluation at step {self.step}")
        metrics = evaluation_metrics(groups)
        self.pass_at_1[self.step] = metrics["eval/pass_at_1"]
        self._tracker.evaluation(self.step, groups)
        return metrics

    async def _start_or_resume(self) -> None:
        """Start from the beginning, or continue from the checkpoint. Weights are published first, because the workers
        cannot sample without them."""
        if self._start is None:
            with _located("in the model that the run starts with"):
                await self._publish(version=0)
            self._admit()
            self._log(await self._evaluate())
            return
        path, progress = self._start.path, self._start.progress
        if progress.data != self._source.fingerprint:
            raise CheckpointError(
                f"{path}: cannot resume from this checkpoint: the training prompts have changed, because seed, task.* "
                "or the tokenizer did. Restore the earlier settings, or train under another name"
            )
        self._rescue.restore(path, self._source.rows)
        await self._learner.load(learner_state(path), self._checkpoints.scratch)
        self.step = progress.step
        self.pass_at_1[0] = progress.first_pass_at_1
        self._sampled_responses = progress.sampled_responses
        self._started -= progress.elapsed_s
        self._source.resume(self._start)
        self._buffer.restore(progress.trained_prompts, progress.dropped_prompts)
        with _located(f"in the checkpoint {path}"):
            await self._publish(self.step)

    async def _save(self) -> None:
        await asyncio.to_thread(self._tracker.sync)
        with self._timed("checkpoint"), self._checkpoints.attempt(self.step) as path:
            with _located(f"in the state after step {self.step}, of which no checkpoint was written"):
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
                sampled_responses=self._sampled_responses,
            )
            # In a thread, so that the fleet keeps working.
            await asyncio.to_thread(self._rescue.save, path, progress.in_flight)
            await asyncio.to_thread(self._checkpoints.commit, path, progress, sealed, self._source.selection)
        self._tracker.checkpoint(self.step, path)

    @property
    def elapsed_s(self) -> float:
        """The seconds spent on training, including those of the interrupted runs before this one."""
        return time.monotonic() - self._started

    def _due(self, every_steps: int) -> bool:
        return self.step % every_steps == 0 or self.step == self._config.steps

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
        self._times_s.clear()  # the time of a checkpoint that follows is in the next row

    def _state_metrics(self) -> dict[str, float]:
        state = self._fleet.state
        return {
            "fleet/healthy_workers": float(state.started_workers),
            "fleet/workers": float(state.size),
            "fleet/restarts": self._tracker.restarts_before + state.restarts,
            "logprob_gap/probe_max": self._fleet.take_probe_gap(),
            "progress/weight_version": float(self.step),
            "progress/epoch": float(self._source.epoch),
            "progress/responses_sampled": float(self._sampled_responses),
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


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Say in a NonFiniteError of the block where the number was found."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{where}, {error}") from error
