"""The loss of one micro-batch: the objective's surrogate, and what can be added to any of them. Pure torch functions.

    L(θ) = − Σ_i scale_i Σ_t [ v_it surrogate_it − β KL_it + c H_it ]

    v    detached weight min(π_old / μ, cap), for a sampler μ that is not the policy π_old that the batch begins with
    KL   an estimate of the divergence of π_θ from the reference, times β = objective.kl_coefficient
    H    the entropy of π_θ, times c = objective.entropy_coefficient

A scalar to be summed over micro-batches and ranks: `scale_i` is the batch's denominator (see `training_batch.py`). A
token's divergence and entropy weigh what its surrogate does. What is off is not computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cluster.core.config import ObjectiveConfig
from learner.objective.surrogates import SURROGATES, Tokens
from learner.objective.table import resolve


@dataclass(frozen=True, slots=True)
class PolicyLogprobs:
    """Log-probabilities of the same response tokens under all the policies there are, [B, T]."""

    new_BT: Tensor
    """Of π_θ, with gradient."""
    old_BT: Tensor
    """Of π_old, the learner's policy when it began with the batch."""
    sampler_BT: Tensor
    """Of μ, what the tokens were sampled from, as the sampler says. NaN or infinite where it does not."""
    reference_BT: Tensor | None = None
    """Of the frozen reference; None without a KL term."""

    def masked(self, mask_BT: Tensor) -> PolicyLogprobs:
        """Zeros in the padding, which may hold anything: 0 × inf is not 0."""
        reference_BT = self.reference_BT
        return PolicyLogprobs(
            new_BT=torch.where(mask_BT, self.new_BT, 0.0),
            old_BT=torch.where(mask_BT, self.old_BT, 0.0).detach(),
            sampler_BT=torch.where(mask_BT, self.sampler_BT, 0.0),
            reference_BT=None if reference_BT is None else torch.where(mask_BT, reference_BT, 0.0).detach(),
        )


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    loss: Tensor
    """A scalar, with gradient."""
    statistics: dict[str, float]
    """Sums over the tokens that count, and extremes (`min_…`, `max_…`), for `learner.engine.statistics.merge`."""


def policy_loss(
    config: ObjectiveConfig,
    logprobs: PolicyLogprobs,
    entropy_BT: Tensor,
    advantages_B: Tensor,
    scales_B: Tensor,
    mask_BT: Tensor,
) -> PolicyLoss:
    """The loss and what there is to say of it.

    A token whose sampler did not say how likely it was is left out of everything.

    Args:
        config: which objective, and its options.
        logprobs: of the response tokens, under all policies.
        entropy_BT: of π_θ at each response token; with gradient if it has a weight.
        advantages_B: w_i A_i.
        scales_B: weight of each token of response i. Where it is 0 the tokens are not counted either.
        mask_BT: True on response tokens.
    """
    objective = resolve(config)
    mask_BT = mask_BT & logprobs.sampler_BT.isfinite()
    logprobs = logprobs.masked(mask_BT)
    entropy_BT = torch.where(mask_BT, entropy_BT, 0.0)
    tokens = Tokens(logprobs.new_BT, logprobs.new_BT - logprobs.old_BT, advantages_B[:, None], mask_BT)
    surrogate = SURROGATES[objective.surrogate](tokens, objective.clip_low, objective.clip_high)

    values_BT = surrogate.values_BT
    by_token = {
        "tokens": torch.ones_like(values_BT),
        "entropy": entropy_BT,
        "clipped_low": surrogate.clipped_low_BT,
        "clipped_high": surrogate.clipped_high_BT,
        "ratio": surrogate.ratio_BT,
        "kl_to_old": kl_estimate(logprobs.old_BT, logprobs.new_BT, "k3"),
        "logprob_gap": (logprobs.old_BT - logprobs.sampler_BT).abs(),
    }
    if config.importance_cap is not None:
        weights_BT = importance_weights(logprobs, config.importance_cap, config.importance_level or "token")
        values_BT = values_BT * weights_BT
        by_token["importance_weight"] = weights_BT
        by_token["capped"] = weights_BT == config.importance_cap
    if config.kl_coefficient:
        assert logprobs.reference_BT is not None, "a divergence is from something"
        kl_BT = kl_estimate(logprobs.new_BT, logprobs.reference_BT, config.kl_estimator or "k3")
        values_BT = values_BT - config.kl_coefficient * kl_BT
        by_token["kl_to_reference"] = kl_BT
    if config.entropy_coefficient > 0:
        values_BT = values_BT + config.entropy_coefficient * entropy_BT
    loss = -(scales_B[:, None] * values_BT * mask_BT).sum()

    counted_BT = mask_BT & (scales_B[:, None] != 0)  # not the empty micro-batch's token
    return PolicyLoss(loss, {"loss": loss.item()} | _statistics(by_token, counted_BT))


@torch.no_grad()
def _statistics(by_token: dict[str, Tensor], counted_BT: Tensor) -> dict[str, float]:
    """Sums over the tokens that count, and extremes; those of no token at all are infinite."""
    found = {name: (values_BT * counted_BT).sum() for name, values_BT in by_token.items()} | {
        "max_logprob_gap": torch.where(counted_BT, by_token["logprob_gap"], -torch.inf).max(),
        "min_ratio": torch.where(counted_BT, by_token["ratio"], torch.inf).min(),
        "max_ratio": torch.where(counted_BT, by_token["ratio"], -torch.inf).max(),
    }
    values = torch.stack([value.double() for value in found.values()]).tolist()  # one wait for the device
    return dict(zip(found, values, strict=True))


def importance_weights(logprobs: PolicyLogprobs, cap: float, level: Literal["token", "sequence"]) -> Tensor:
    """min(π_old / μ, cap), detached: of each token [B, T], or of each whole response [B, 1]."""
    log_ratio_BT = logprobs.old_BT - logprobs.sampler_BT
    if level == "sequence":
        log_ratio_BT = log_ratio_BT.sum(dim=1, keepdim=True)
    return log_ratio_BT.exp().clamp(max=cap).detach()


def kl_estimate(logprobs_BT: Tensor, reference_BT: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Per token, what in mean over samples of the first policy is (k2: nearly) its divergence from the second.

    With d = log π_ref − log π: k1 = −d, k2 = d² / 2, k3 = e^d − d − 1 (Schulman, "Approximating KL Divergence", 2020).
    """
    d_BT = reference_BT - logprobs_BT
    if estimator == "k1":
        return -d_BT
    if estimator == "k2":
        return d_BT.square() / 2
    return d_BT.exp() - d_BT - 1
