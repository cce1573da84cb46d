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
collect         prompts_per_step scored groups       the fleet, which samples and scores on its own
learn           the learner ranks                    —
publish         the learner ranks                    nobody waits for the workers: each pulls before it leases again
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cluster.checkpoints import CheckpointStore, Progress, learner_state
from cluster.config import RunConfig
from cluster.contracts import Prompt, ScoredGroup
from cluster.fleet import RolloutFleet
from cluster.prompt_source import PromptSource
from cluster.step_metrics import batch_metrics, evaluation_metrics
from cluster.tracking import Tracker
from cluster.verdict_guard import refuse_failed_verdicts
from learner.group import LearnerGroup
from learner.weighing import weigh
from rollout.work_buffer import WorkBuffer


class LogprobGapError(RuntimeError):
    """Sampler and learner do not compute the same policy: what would be learned is not what was sampled."""


class Controller:
    """Wires the parts and runs the loop. `step` counts batches learned from, and is the version of the published
    weights."""

    def __init__(
        self,
        config: RunConfig,
        source: PromptSource,
        held_out: Sequence[Prompt],
        fleet: RolloutFleet,
        learner: LearnerGroup,
        checkpoints: CheckpointStore,
        tracker: Tracker,
    ) -> None:
        self._config = config
        self._source = source
        self._held_out = held_out
        self._fleet = fleet
        self._learner = learner
        self._checkpoints = checkpoints
        self._tracker = tracker
        rollout = config.rollout
        self._buffer = WorkBuffer(capacity=(rollout.max_staleness + 1) * rollout.prompts_per_step)
        self._times_s: dict[str, float] = defaultdict(float)
        self._started = time.monotonic()
        self.step = 0
        self.pass_at_1: dict[int, float] = {}
        """By step."""

    async def run(self) -> None:
        """Train until the configured number of steps, from the newest checkpoint if there is one."""
        await self._restore()
        while self.step < self._config.steps:
            self._times_s.clear()
            with self._timed("step"):
                metrics, trained = await self._train_one_batch()
            if self._due(self._config.evaluation.every_steps):
                metrics |= await self._evaluate()
            if self._due(self._config.checkpoint.every_steps):
                await self._save()
            self._tracker.log(self.step, metrics | self._state_metrics(), trained)

    async def _train_one_batch(self) -> tuple[dict[str, float], list[str]]:
        """One turn of the loop: its metrics, and the ids of the prompts that were learned from."""
        rollout = self._config.rollout
        self._admit()

        tokens_before = self._fleet.sampled_tokens
        with self._timed("rollout"):
            await self._fleet.wait_until(lambda: self._buffer.scored_groups >= rollout.prompts_per_step)
        sampled_tokens = self._fleet.sampled_tokens - tokens_before
        groups = self._buffer.take_batch(rollout.prompts_per_step)
        self._refuse_failed_verdicts(groups, f"in step {self.step + 1}")
        metrics = batch_metrics(groups, learner_version=self.step)
        assert metrics["staleness/max"] <= rollout.max_staleness, "admission by slots bounds staleness"

        with self._timed("learn"):
            metrics |= await self._learn(groups)
        self._refuse_logprob_gap(metrics)
        with self._timed("publish"):
            await self._publish(self.step + 1)
        self.step += 1
        trained = [group.prompt.id for group in groups]
        self._buffer.settle(trained)

        if self._due(self._config.evaluation.every_steps):
            self._tracker.transcripts(self.step, groups)
        metrics["throughput/rollout_tokens_per_s"] = sampled_tokens / max(self._times_s["rollout"], 1e-9)
        metrics["throughput/learner_tokens_per_s"] = metrics.pop("learner_tokens") / self._times_s["learn"]
        return metrics, trained

    def _admit(self) -> None:
        """Fill the free slots; the fleet goes to work on them at once."""
        while self._buffer.free_slots:
            self._buffer.admit(self._source.next())
        self._fleet.feed(self._buffer)

    async def _learn(self, groups: Sequence[ScoredGroup]) -> dict[str, float]:
        """One optimiser step per mini-batch, each weighed as a whole before the ranks see any of it."""
        size = len(groups) // self._config.learner.mini_batches
        max_response_tokens = self._config.rollout.max_response_tokens
        mini_batches = [
            weigh(groups[start : start + size], self._config.objective, max_response_tokens)
            for start in range(0, len(groups), size)
        ]
        weighed = {
            key: sum(batch.metrics[key] for batch in mini_batches) / len(mini_batches)
            for key in mini_batches[0].metrics
        }
        return weighed | await self._learner.learn(mini_batches)

    async def _publish(self, version: int) -> None:
        self._fleet.publish(await self._learner.publish(version))

    async def _evaluate(self) -> dict[str, float]:
        with self._timed("evaluate"):
            groups = await self._fleet.sample(self._held_out)
        self._refuse_failed_verdicts(groups, f"in the evaluation at step {self.step}")
        metrics = evaluation_metrics(groups)
        self.pass_at_1[self.step] = metrics["eval/pass_at_1"]
        return metrics

    async def _restore(self) -> None:
        """Begin where the newest checkpoint ended, or at the beginning. Publishing comes first: the workers wait
        for it."""
        newest = self._checkpoints.newest()
        if newest is None:
            await self._publish(version=0)
            self._tracker.log(0, await self._evaluate() | self._state_metrics())
            return
        path, progress = newest
        await self._learner.load(learner_state(path))
        self.step = progress.step
        self.pass_at_1[0] = progress.first_pass_at_1
        self._started -= progress.elapsed_s
        self._source.position = progress.position
        self._buffer.trained_prompts = progress.trained_prompts
        for prompt_id in progress.in_flight:
            self._buffer.admit(self._source.by_id(prompt_id))
        await self._publish(self.step)

    async def _save(self) -> None:
        with self._timed("checkpoint"):
            path = self._checkpoints.begin(self.step)
            await self._learner.save(learner_state(path))
            progress = Progress(
                step=self.step,
                position=self._source.position,
                in_flight=self._buffer.in_flight,
                trained_prompts=self._buffer.trained_prompts,
                first_pass_at_1=self.pass_at_1[0],
                elapsed_s=self.elapsed_s,
            )
            await asyncio.to_thread(self._checkpoints.commit, path, progress)  # the fleet goes on meanwhile

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
        refuse_failed_verdicts(groups, self._config.reward.max_error_share, where)

    def _state_metrics(self) -> dict[str, float]:
        state = self._fleet.state
        return {
            "fleet/healthy_workers": float(state.started_workers),
            "fleet/workers": float(len(state.members)),
            "fleet/restarts": float(state.restarts),
            "logprob_gap/probe_max": self._fleet.take_probe_gap(),
            "progress/weight_version": float(self.step),
            "progress/epoch": float(self._source.epoch),
            "progress/prompts_trained": float(self._buffer.trained_prompts),
            **{f"time/{part}_s": seconds for part, seconds in self._times_s.items()},
        }

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._times_s[part] += time.monotonic() - started
