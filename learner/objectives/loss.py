"""The loss of one micro-batch: the objective's surrogate and what can be added to any of them. Pure torch functions.

    L(θ) = − Σ_i scale_i Σ_t [ v_it surrogate_it − β KL_it + c H_it ]

    v    importance weight min(π_old / μ, cap) for a sampler μ that is not the policy π_old that the batch begins with
    KL   an estimate of the divergence of π_θ from the reference
    H    the entropy of π_θ

A scalar to be summed over micro-batches and ranks. A token's divergence and entropy weigh what its surrogate does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cluster.config import ObjectiveConfig
from learner.objectives import chosen
from learner.objectives.objective import Tokens


@dataclass(frozen=True, slots=True)
class PolicyLogprobs:
    """Log-probabilities of the same response tokens under all the policies there are."""

    new_BT: Tensor
    """Of π_θ, with gradient."""
    old_BT: Tensor
    """Of π_old, the learner's policy when it began with the batch."""
    sampler_BT: Tensor
    """Of μ, what the tokens were sampled from, as the sampler says."""
    reference_BT: Tensor | None = None
    """Of the model that the run started with; None where kl_beta is 0."""

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
    """Sums over the tokens that count, and extremes (`min_…`, `max_…`): to be joined by `learner.statistics.merge`."""


def policy_loss(
    config: ObjectiveConfig,
    logprobs: PolicyLogprobs,
    entropy_BT: Tensor,
    advantages_B: Tensor,
    scales_B: Tensor,
    mask_BT: Tensor,
) -> PolicyLoss:
    """The loss and what there is to say of it.

    Args:
        config: which objective, and its options.
        logprobs: of the response tokens, under all policies.
        entropy_BT: of π_θ at each response token; with gradient if there is an entropy bonus.
        advantages_B: w_i A_i.
        scales_B: weight of each token of response i. Where it is 0 the tokens are not counted either.
        mask_BT: True on response tokens.
    """
    objective, settings = chosen(config)
    logprobs = logprobs.masked(mask_BT)
    entropy_BT = torch.where(mask_BT, entropy_BT, 0.0)
    scales_B1 = scales_B[:, None]
    tokens = Tokens(logprobs.new_BT, logprobs.old_BT, advantages_B[:, None], mask_BT)
    surrogate = objective.surrogate(tokens, settings.clip_low, settings.clip_high)

    maximised_BT = surrogate.value_BT
    by_token = {
        "tokens": torch.ones_like(maximised_BT),
        "entropy": entropy_BT,
        "clipped_low": surrogate.clipped_low_BT,
        "clipped_high": surrogate.clipped_high_BT,
        "kl_to_old": kl_estimate(logprobs.old_BT, logprobs.new_BT, "k3"),
        "logprob_gap": (logprobs.old_BT - logprobs.sampler_BT).abs(),
    }
    if settings.importance_cap is not None:
        weights_BT = importance_weights(logprobs, settings.importance_cap, settings.importance_level)
        maximised_BT = maximised_BT * weights_BT
        by_token["importance_weight"] = weights_BT
    if logprobs.reference_BT is not None:
        kl_BT = kl_estimate(logprobs.new_BT, logprobs.reference_BT, settings.kl_estimator)
        maximised_BT = maximised_BT - settings.kl_beta * kl_BT
        by_token["kl_to_reference"] = kl_BT
    if settings.entropy_bonus > 0:
        maximised_BT = maximised_BT + settings.entropy_bonus * entropy_BT
    loss = -(scales_B1 * maximised_BT * mask_BT).sum()

    counted_BT = mask_BT & (scales_B1 != 0)
    return PolicyLoss(loss, {"loss": loss.item()} | _statistics(by_token, surrogate.ratio_BT, counted_BT))


@torch.no_grad()
def _statistics(by_token: dict[str, Tensor], ratio_BT: Tensor, counted_BT: Tensor) -> dict[str, float]:
    """Sums over the tokens that count, and extremes; those of no token at all are infinite."""
    found = {name: (values_BT * counted_BT).sum() for name, values_BT in by_token.items()} | {
        "max_logprob_gap": torch.where(counted_BT, by_token["logprob_gap"], -torch.inf).max(),
        "min_ratio": torch.where(counted_BT, ratio_BT, torch.inf).min(),
        "max_ratio": torch.where(counted_BT, ratio_BT, -torch.inf).max(),
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
