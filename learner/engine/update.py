"""The update of one rank: micro-batches in, one optimizer step per mini-batch and epoch, sums for the metrics out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cluster.core.actor_options import LearnerOptions
from cluster.core.config import ObjectiveConfig
from learner.engine.gradient_fraction import take_gradient_norm
from learner.engine.reference_policy import build_reference
from learner.engine.statistics import merge
from learner.model.batching import MicroBatch
from learner.model.logprobs import TokenBatch, response_logprobs
from learner.objective.loss import PolicyLogprobs, policy_loss

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class PolicyUpdate:
    """What a rank does with its share of a batch. It never sees rewards or groups.

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

    def learn(self, mini_batches: Sequence[Sequence[MicroBatch]]) -> list[dict[str, float]]:
        """Learn from all mini-batches, `epochs_per_batch` times, an optimizer step each. Returns this rank's statistics
        (see `learner_metrics`), one dict per step.

        π_old is the policy before the first of these steps: there it is π_θ itself and costs nothing; for the later
        mini-batches it is computed before that step is taken. The reference is asked once per batch.
        """
        work = [[_Work(micro_batch) for micro_batch in micro_batches] for micro_batches in mini_batches]
        for item in itertools.chain(*work[1:]):
            item.old_BT = self._frozen_logprobs(item)
        if self._reference is not None:
            for item in itertools.chain(*work):
                item.reference_BT = self._reference.logprobs(self._tensors(item), self._temperature)
        shares = self._gradient_norms_by_side(work[0]) if self._learner.measure_gradient_fraction else {}
        epochs = self._learner.epochs_per_batch
        first, *others = [self._step(mini_batch) for _ in range(epochs) for mini_batch in work]
        return [first | shares, *others]

    def _step(self, mini_batch: Sequence[_Work]) -> dict[str, float]:
        statistics = merge([self._backward(item, self._objective) for item in mini_batch])
        statistics["learning_rate"] = self._engine.get_lr()[0]
        self._engine.step()
        statistics["grad_norm"] = float(self._engine.get_global_grad_norm())
        return statistics

    def _gradient_norms_by_side(self, mini_batch: Sequence[_Work]) -> dict[str, float]:
        """Of the surrogate's gradient from positive advantages alone, and from negative ones. Nothing is learned."""
        surrogate = self._objective.model_copy(update={"kl_coefficient": None, "entropy_coefficient": 0.0})
        norms = {}
        for side, bounds in (("positive", (0.0, math.inf)), ("negative", (-math.inf, 0.0))):
            for item in mini_batch:
                self._backward(item, surrogate, bounds)
            norms[f"{side}_gradient_norm"] = take_gradient_norm(self._engine)
        return norms

    def _backward(
        self,
        item: _Work,
        objective: ObjectiveConfig,
        bounds: tuple[float, float] = (-math.inf, math.inf),
    ) -> dict[str, float]:
        """Forward and backward of one micro-batch, its advantages brought between `bounds`."""
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
        )
        # DeepSpeed averages gradients over the ranks; the denominators in `scales_B` are the whole batch's already.
        self._engine.backward(result.loss * self._learner.ranks)
        return result.statistics

    def _frozen_logprobs(self, item: _Work) -> Tensor:
        with torch.no_grad():
            return response_logprobs(self._engine, self._tensors(item), self._temperature)[0]

    def _tensors(self, item: _Work) -> TokenBatch:
        return TokenBatch.from_micro_batch(item.micro_batch, self._engine.device)


class _Work:
    """A micro-batch, and what is computed of it once, however often it is learned from."""

    def __init__(self, micro_batch: MicroBatch) -> None:
        self.micro_batch = micro_batch
        self.old_BT: Tensor | None = None
        """Log π_old of its response tokens, [B, T]."""
        self.reference_BT: Tensor | None = None
        """Log π_ref, [B, T]."""
