"""The loss, in the method's own terms. Pure torch functions over one micro-batch.

    L(θ) = − Σ_i scale_i Σ_t min( r_it A_i , clip(r_it, 1 − ε_low, 1 + ε_high) A_i )        r_it = π_θ / π_old

`A_i` already carries the hysteretic weight and `scale_i` the batch's denominator (`learner/weighing.py`), so GRPO,
HPO and A-HPO are this one sum. (HPO: arXiv 2605.30201.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ClippedLoss:
    """Loss of one micro-batch (a scalar to be summed over micro-batches and ranks) and its clip counts."""

    loss: Tensor
    clipped_low_tokens: Tensor
    clipped_high_tokens: Tensor


def clipped_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    scales_B: Tensor,
    mask_BT: Tensor,
    clip_low: float,
    clip_high: float,
    token_weights_BT: Tensor | None = None,
) -> ClippedLoss:
    """The clipped surrogate, weighed and summed.

    Args:
        logprobs_BT: log π_θ of the response tokens, with gradient.
        old_logprobs_BT: log π_old of the same tokens.
        advantages_B: w_i A_i.
        scales_B: weight of each token of response i.
        mask_BT: True on response tokens.
        clip_low, clip_high: ε_low and ε_high.
        token_weights_BT: detached importance weights for the sampler's mismatch, or None for 1.
    """
    # Masked before the exponential: padding may hold anything, and 0 × inf is not 0.
    log_ratio = torch.where(mask_BT, logprobs_BT - old_logprobs_BT, 0.0)
    ratio = log_ratio.exp()
    advantages = advantages_B[:, None]
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if token_weights_BT is not None:
        surrogate = surrogate * token_weights_BT
    loss = -(scales_B[:, None] * surrogate * mask_BT).sum()
    with torch.no_grad():
        low = ((ratio < 1 - clip_low) & (advantages < 0) & mask_BT).sum()
        high = ((ratio > 1 + clip_high) & (advantages > 0) & mask_BT).sum()
    return ClippedLoss(loss, low, high)


def truncated_importance_weights(
    old_logprobs_BT: Tensor, sampler_logprobs_BT: Tensor, mask_BT: Tensor, cap: float
) -> Tensor:
    """min(π_old / μ, cap) per token, detached: corrects for a sampler μ that is not the policy the step starts from."""
    log_ratio = torch.where(mask_BT, old_logprobs_BT - sampler_logprobs_BT, 0.0)
    return log_ratio.exp().clamp(max=cap).detach()
