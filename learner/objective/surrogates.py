"""The surrogates, in the method's own terms. Pure torch functions over one micro-batch.

    surrogate_it          e.g. min( r_it A_i , clip(r_it, 1 − ε_low, 1 + ε_high) A_i )

`A_i` already carries the hysteretic weight (`training_batch.py`). Which objective has which surrogate:
`learner/objective/table.py`; what they are added up to: `learner/objective/loss.py`. r = π_θ / π_old.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objective.table import SurrogateName

POSITIVE_TEMPERATURE, NEGATIVE_TEMPERATURE = 1.0, 1.05
"""SAPO's τ: the gate of a negative advantage closes sooner."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A micro-batch as surrogates see it: zeros in the padding, which may have held anything (0 × inf is not 0)."""

    logprobs_BT: Tensor
    """log π_θ, with gradient."""
    log_ratio_BT: Tensor
    """log r, with gradient."""
    advantages_B1: Tensor
    """w_i A_i."""
    mask_BT: Tensor


@dataclass(frozen=True, slots=True)
class Surrogate:
    """What is maximised, per token, and where a bound acted. Padding is not masked yet."""

    values_BT: Tensor
    ratio_BT: Tensor
    """What the bounds are for: each token's ratio, or its response's."""
    clipped_low_BT: Tensor
    clipped_high_BT: Tensor


def token_clip(tokens: Tokens, clip_low: float, clip_high: float) -> Surrogate:
    """min(r A, clip(r) A) of each token's ratio."""
    return _pessimistic(tokens.log_ratio_BT.exp(), tokens.advantages_B1, clip_low, clip_high)


def sequence_clip(tokens: Tokens, clip_low: float, clip_high: float) -> Surrogate:
    """min(s A, clip(s) A) of s_i = exp(mean_t log r_it), said by each token of the response: over its tokens the scale
    1 / (N |τ_i|) adds up to 1 / N."""
    length_B1 = tokens.mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    ratio_B1 = (tokens.log_ratio_BT.sum(dim=1, keepdim=True) / length_B1).exp()
    ratio_BT = ratio_B1.expand_as(tokens.log_ratio_BT)
    return _pessimistic(ratio_BT, tokens.advantages_B1, clip_low, clip_high)


def _pessimistic(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Surrogate:
    return Surrogate(
        torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages),
        ratio,
        (ratio < 1 - clip_low) & (advantages < 0),
        (ratio > 1 + clip_high) & (advantages > 0),
    )


def soft_gate(tokens: Tokens, clip_low: float, clip_high: float) -> Surrogate:
    """(4/τ) σ(τ (r − 1)) A: its slope is A at r = 1 and fades on both sides. There is no bound, so none acts."""
    advantages = tokens.advantages_B1
    temperature = torch.full_like(advantages, NEGATIVE_TEMPERATURE)
    temperature = temperature.masked_fill(advantages > 0, POSITIVE_TEMPERATURE)
    ratio = tokens.log_ratio_BT.exp()
    gate = 4 / temperature * torch.sigmoid(temperature * (ratio - 1))
    nowhere = torch.zeros_like(tokens.mask_BT)
    return Surrogate(gate * advantages, ratio, nowhere, nowhere)


def detached_weight(tokens: Tokens, clip_low: float, clip_high: float) -> Surrogate:
    """stopgrad(clip(r)) A log π: a bound limits a token's weight and never takes its gradient away, whatever its
    sign."""
    ratio = tokens.log_ratio_BT.exp().detach()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    pushed = tokens.advantages_B1 != 0
    return Surrogate(
        weight * tokens.advantages_B1 * tokens.logprobs_BT,
        ratio,
        (ratio < 1 - clip_low) & pushed,
        (ratio > 1 + clip_high) & pushed,
    )


SURROGATES: dict[SurrogateName, Callable[[Tokens, float, float], Surrogate]] = {
    "token_clip": token_clip,
    "sequence_clip": sequence_clip,
    "soft_gate": soft_gate,
    "detached_weight": detached_weight,
}
