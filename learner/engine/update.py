"""The update of one rank: takes micro-batches, does one optimizer step per mini-batch and epoch, returns statistics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cluster.core.actor_options import LearnerOptions
from cluster.core.config import ObjectiveConfig
from learner.engine.finite import refuse_non_finite_step
from learner.engine.reference_policy import build_reference
from learner.engine.statistics import merge
from learner.model.batching import MicroBatch
from learner.model.policy import TokenBatch, response_logprobs
from learner.objective.loss import PolicyLogprobs, policy_loss

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class PolicyUpdate:
    """Train on a rank's part of a batch. Rewards and groups are not visible here.

    Usage:
        update = PolicyUpdate(engine, options)
        statistics, = update.learn([micro_batches])
    """

    def __init__(self, engine: DeepSpeedEngine, options: LearnerOptions) -> None:
        self._engine = engine
        self._learner = options.learner
        self._temperature = options.temperature
        self._objective = options.objective
        self._reference = build_reference(engine, options)
        self.steps: list[dict[str, float]] = []
        """The statistics of the last batch's optimizer steps. If one failed it is the last, with what was known."""

    def learn(self, mini_batches: Sequence[Sequence[MicroBatch]]) -> list[dict[str, float]]:
        """Do one optimizer step per mini-batch, `epochs_per_batch` times. Returns this rank's statistics (see
        `learner_metrics`), one dict per step.

        Raises:
            NonFiniteError: if the loss or the gradient norm of a step is NaN or infinite, on any rank.

        π_old is the policy before the first of these steps. For the first mini-batch it equals π_θ and costs nothing;
        for the later ones it is computed before the first step is taken. The reference is evaluated once per batch.
        """
        work = [[_Work(micro_batch) for micro_batch in micro_batches] for micro_batches in mini_batches]
        for item in itertools.chain(*work[1:]):
            item.old_BT = self._frozen_logprobs(item)
        if self._reference is not None:
            for item in itertools.chain(*work):
                item.reference_BT = self._reference.logprobs(self._tensors(item), self._temperature)
        norms = self._gradient_norms_by_sign(work[0]) if self._learner.measure_gradient_fraction else {}
        self.steps = []
        epochs = self._learner.epochs_per_batch
        first, *others = [
            self._step(mini_batch, number)
            for number, mini_batch in enumerate(itertools.chain.from_iterable([work] * epochs), start=1)
        ]
        return [first | norms, *others]

    def _step(self, mini_batch: Sequence[_Work], number: int) -> dict[str, float]:
        """Do optimizer step `number` of the batch, counted from 1."""
        statistics = merge([self._backward(item, self._objective) for item in mini_batch])
        self.steps.append(statistics)
        refuse_non_finite_step(statistics, number)
        statistics["learning_rate"] = self._engine.get_lr()[0]
        self._engine.step()
        skipped_steps = 0 if self._engine.was_step_applied() else self._engine.skipped_steps
        statistics["grad_norm"] = _gradient_norm(self._engine)
        refuse_non_finite_step(statistics, number, skipped_steps)
        return statistics

    def _gradient_norms_by_sign(self, mini_batch: Sequence[_Work]) -> dict[str, float]:
        """Return the norms of the surrogate's gradient from positive and from negative advantages alone. The weights do
        not change."""
        surrogate = self._objective.model_copy(update={"kl_coefficient": None, "entropy_coefficient": 0.0})
        norms = {}
        for sign, bounds in (("positive", (0.0, math.inf)), ("negative", (-math.inf, 0.0))):
            for item in mini_batch:
                self._backward(item, surrogate, bounds)
            norms[f"{sign}_grad_norm"] = take_gradient_norm(self._engine)
        refuse_non_finite_step(norms, 1)
        return norms

    def _backward(
        self,
        item: _Work,
        objective: ObjectiveConfig,
        bounds: tuple[float, float] = (-math.inf, math.inf),
    ) -> dict[str, float]:
        """Run forward and backward of one micro-batch, with its advantages clamped to `bounds`."""
        batch = self._tensors(item)
        logprobs_BT, entropy_BT = response_logprobs(
            self._engine, batch, self._temperature, entropy_gradient=objective.entropy_coefficient > 0
        )
        if item.old_BT is None:
            item.old_BT = logprobs_BT.detach()
        result = policy_loss(
            objective,
            PolicyLogprobs(logprobs_BT, item.old_BT, batch.sampler_logprobs_BT, item.reference_BT),
            entropy_BT,
            batch.advantages_B.clamp(*bounds),
            batch.scales_B,
            batch.response_mask_BT,
            batch.is_replay_B,
        )
        # DeepSpeed averages gradients over the ranks, but the denominators in `scales_B` are the whole batch's.
        self._engine.backward(result.loss * self._learner.ranks)
        return result.statistics

    def _frozen_logprobs(self, item: _Work) -> Tensor:
        """Return the log-probabilities of the current policy, without gradient."""
        with torch.no_grad():
            return response_logprobs(self._engine, self._tensors(item), self._temperature)[0]

    def _tensors(self, item: _Work) -> TokenBatch:
        return TokenBatch.from_micro_batch(item.micro_batch, self._engine.device)


class _Work:
    """A micro-batch with the log-probabilities that are computed once, however many steps it is used in."""

    def __init__(self, micro_batch: MicroBatch) -> None:
        self.micro_batch = micro_batch
        self.old_BT: Tensor | None = None
        """log π_old of the response tokens, [B, T]."""
        self.reference_BT: Tensor | None = None
        """log π_ref of the response tokens, [B, T]."""


def take_gradient_norm(engine: DeepSpeedEngine) -> float:
    """Return the norm over all ranks of the gradient accumulated since the last step, and discard that gradient. The
    weights do not change. A collective.

    Each ZeRO stage keeps gradients in its own way, and only `step` can finish, measure and clear them. So this runs a
    step in which the optimizer does nothing, and which neither the learning-rate schedule nor the engine counts.
    """
    optimizer: Any = getattr(
        engine.optimizer, "optimizer", engine.optimizer
    )  # ZeRO's optimizer wraps torch's
    update, schedule = optimizer.step, engine.lr_scheduler
    counted = engine.global_steps, engine.global_samples, engine.skipped_steps
    optimizer.step, engine.lr_scheduler = _no_update, None
    try:
        engine.step()
    finally:
        optimizer.step, engine.lr_scheduler = update, schedule
        engine.global_steps, engine.global_samples, engine.skipped_steps = counted
    return _gradient_norm(engine)


def _gradient_norm(engine: DeepSpeedEngine) -> float:
    """Return the gradient norm of the last step. If DeepSpeed has skipped that step, it is NaN: the engine still has
    the norm of an earlier one."""
    return float(engine.get_global_grad_norm()) if engine.was_step_applied() else math.nan


def _no_update(*_: Any, **__: Any) -> None:
    pass
