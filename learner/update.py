"""The update of one rank: micro-batches in, one optimiser step per mini-batch, sums for the metrics out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from learner.batching import MicroBatch
from learner.engine import LearnerOptions
from learner.logprobs import TokenBatch, response_logprobs
from learner.objective_table import resolve
from learner.objectives import policy_loss, truncated_importance_weights

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class PolicyUpdate:
    """What a rank does with its share of a batch. It never sees rewards or groups.

    Usage:
        update = PolicyUpdate(engine, options)
        sums, = update.learn([micro_batches])
    """

    def __init__(self, engine: DeepSpeedEngine, options: LearnerOptions) -> None:
        self._engine = engine
        self._ranks = options.learner.ranks
        self._temperature = options.temperature
        self._importance_cap = options.objective.importance_cap
        self._objective = resolve(options.objective)

    def learn(self, mini_batches: Sequence[Sequence[MicroBatch]]) -> list[dict[str, float]]:
        """One optimiser step per mini-batch. Returns this rank's sums (see `LearnerGroup`), one dict per step.

        π_old is the policy before the first of these steps: with one step it is π_θ itself and costs nothing, with
        several it is computed for the later ones before the first is taken.
        """
        old_logprobs = [None, *(self._all_logprobs(micro_batches) for micro_batches in mini_batches[1:])]
        return [
            self._step(micro_batches, old)
            for micro_batches, old in zip(mini_batches, old_logprobs, strict=True)
        ]

    def _all_logprobs(self, micro_batches: Sequence[MicroBatch]) -> list[Tensor]:
        with torch.no_grad():
            return [
                response_logprobs(
                    self._engine,
                    TokenBatch.from_micro_batch(micro_batch, self._engine.device),
                    self._temperature,
                )[0]
                for micro_batch in micro_batches
            ]

    def _step(
        self, micro_batches: Sequence[MicroBatch], old_logprobs: list[Tensor] | None
    ) -> dict[str, float]:
        sums: dict[str, float] = defaultdict(float)
        for index, micro_batch in enumerate(micro_batches):
            self._accumulate(micro_batch, old_logprobs[index] if old_logprobs else None, sums)
        sums["learning_rate"] = self._engine.get_lr()[0]
        self._engine.step()
        sums["gradient_norm"] = float(self._engine.get_global_grad_norm())
        return dict(sums)

    def _accumulate(self, micro_batch: MicroBatch, old_BT: Tensor | None, sums: dict[str, float]) -> None:
        """Forward and backward of one micro-batch; add what is to be known of it to `sums`."""
        batch = TokenBatch.from_micro_batch(micro_batch, self._engine.device)
        logprobs_BT, entropy_BT = response_logprobs(self._engine, batch, self._temperature)
        mask_BT = batch.response_mask_BT
        if old_BT is None:
            old_BT = logprobs_BT.detach()
        weights_BT = None
        if self._importance_cap is not None:
            weights_BT = truncated_importance_weights(
                old_BT, batch.sampler_logprobs_BT, mask_BT, self._importance_cap
            )
        result = policy_loss(
            self._objective, logprobs_BT, old_BT, batch.advantages_B, batch.scales_B, mask_BT, weights_BT
        )
        # DeepSpeed averages gradients over the ranks; the denominators in `scales_B` are the whole batch's already.
        self._engine.backward(result.loss * self._ranks)

        counted_BT = mask_BT & (batch.scales_B[:, None] != 0)  # not the empty micro-batch's token
        gap_BT = (old_BT - batch.sampler_logprobs_BT).abs() * counted_BT
        sums["loss"] += result.loss.item()
        sums["tokens"] += counted_BT.sum().item()
        sums["entropy"] += (entropy_BT * counted_BT).sum().item()
        sums["logprob_gap"] += gap_BT.sum().item()
        sums["max_logprob_gap"] = max(sums["max_logprob_gap"], gap_BT.max().item())
        sums["clipped_low"] += result.clipped_low_tokens.item()
        sums["clipped_high"] += result.clipped_high_tokens.item()
