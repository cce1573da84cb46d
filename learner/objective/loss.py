"""The loss of one micro-batch: the objective's surrogate and the optional terms. Pure torch functions.

    L(θ) = − Σ_i scale_i Σ_t [ v_it surrogate_it − β KL_it + c H_it ]

    v    the detached weight min(π_old / μ, cap), for a sampler μ that differs from the policy π_old that the batch
         begins with
    KL   an estimate of the divergence of π_θ from the reference, times β = objective.kl_coefficient
    H    the entropy of π_θ, times c = objective.entropy_coefficient

The loss is a scalar to be summed over micro-batches and ranks: `scale_i` holds the whole batch's denominator (see
`training_batch.py`). A token's divergence and entropy have the same scale as its surrogate. Terms that are switched off
are not computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cluster.core.config import ObjectiveConfig
from learner.objective.objectives import LOG_RATIO_LIMIT, Tokens, ratio_of, resolve


@dataclass(frozen=True, slots=True)
class PolicyLogprobs:
    """The log-probabilities of the same response tokens under each policy, [B, T]."""

    new_BT: Tensor
    """The trained policy π_θ, with gradient."""
    old_BT: Tensor
    """π_old, the learner's policy at the beginning of the batch."""
    sampler_BT: Tensor
    """μ, the sampler's distribution, as reported by the sampler; NaN or infinite where it reported nothing."""
    reference_BT: Tensor | None = None
    """The frozen reference; None without a KL term."""

    def masked(self, mask_BT: Tensor) -> PolicyLogprobs:
        """Return a copy with zeros in the padding, which may hold anything: 0 × inf is not 0."""
        reference_BT = self.reference_BT
        return PolicyLogprobs(
            new_BT=torch.where(mask_BT, self.new_BT, 0.0),
            old_BT=torch.where(mask_BT, self.old_BT, 0.0).detach(),
            sampler_BT=torch.where(mask_BT, self.sampler_BT, 0.0),
            reference_BT=None if reference_BT is None else torch.where(mask_BT, reference_BT, 0.0).detach(),
        )


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The loss of one micro-batch and the statistics of its tokens."""

    loss: Tensor
    """A scalar, with gradient."""
    statistics: dict[str, float]
    """Sums and extremes (`min_…`, `max_…`) over the counted tokens, for `learner.engine.statistics.merge`."""


def policy_loss(
    config: ObjectiveConfig,
    logprobs: PolicyLogprobs,
    entropy_BT: Tensor,
    advantages_B: Tensor,
    scales_B: Tensor,
    mask_BT: Tensor,
    is_replay_B: Tensor | None = None,
) -> PolicyLoss:
    """Compute the loss and its statistics.

    A token without a log-probability from the sampler is left out of both.

    Args:
        config: the objective and its options.
        logprobs: the log-probabilities of the response tokens under all policies.
        entropy_BT: the entropy of π_θ at each response token; with gradient if it has a coefficient.
        advantages_B: w_i A_i.
        scales_B: the factor of each token of response i. The tokens of a response with scale 0 are not counted.
        mask_BT: True on response tokens.
        is_replay_B: True for responses of an earlier batch, whose sampler had other weights: the gap to the sampler is
            measured on the other responses alone. None if there are no such responses.
    """
    objective = resolve(config)
    mask_BT = mask_BT & logprobs.sampler_BT.isfinite()
    logprobs = logprobs.masked(mask_BT)
    entropy_BT = torch.where(mask_BT, entropy_BT, 0.0)
    tokens = Tokens(logprobs.new_BT, logprobs.new_BT - logprobs.old_BT, advantages_B[:, None], mask_BT)
    surrogate = objective.surrogate(tokens, objective.bounds)

    values_BT = surrogate.values_BT
    compared_BT = mask_BT if is_replay_B is None else mask_BT & ~is_replay_B[:, None]
    by_token = {
        "tokens": torch.ones_like(values_BT),
        "entropy": entropy_BT,
        "clipped_low": surrogate.clipped_low_BT,
        "clipped_high": surrogate.clipped_high_BT,
        "ratio": surrogate.ratio_BT,
        "kl_to_old": kl_estimate(logprobs.old_BT, logprobs.new_BT, "k3"),
        "compared": compared_BT,
        "logprob_gap": torch.where(compared_BT, (logprobs.old_BT - logprobs.sampler_BT).abs(), 0.0),
    }
    if config.importance_cap is not None:
        weights_BT = importance_weights(logprobs, config.importance_cap, config.importance_level or "token")
        values_BT = values_BT * weights_BT
        by_token["importance_weight"] = weights_BT
        by_token["capped"] = weights_BT == config.importance_cap
    if config.kl_coefficient:
        assert logprobs.reference_BT is not None, "a KL term needs the reference's log-probabilities"
        kl_BT = kl_estimate(logprobs.new_BT, logprobs.reference_BT, config.kl_estimator or "k3")
        values_BT = values_BT - config.kl_coefficient * kl_BT
        by_token["kl_to_reference"] = kl_BT
    if config.entropy_coefficient > 0:
        values_BT = values_BT + config.entropy_coefficient * entropy_BT
    loss = -(scales_B[:, None] * values_BT * mask_BT).sum()

    counted_BT = mask_BT & (scales_B[:, None] != 0)  # the empty micro-batch's token has scale 0
    return PolicyLoss(loss, {"loss": loss.item()} | _statistics(by_token, counted_BT))


@torch.no_grad()
def _statistics(by_token: dict[str, Tensor], counted_BT: Tensor) -> dict[str, float]:
    """Return sums and extremes over the counted tokens; without any token the extremes are infinite."""
    found = {name: (values_BT * counted_BT).sum() for name, values_BT in by_token.items()} | {
        "max_logprob_gap": torch.where(
            counted_BT & by_token["compared"], by_token["logprob_gap"], -torch.inf
        ).max(),
        "min_ratio": torch.where(counted_BT, by_token["ratio"], torch.inf).min(),
        "max_ratio": torch.where(counted_BT, by_token["ratio"], -torch.inf).max(),
    }
    values = torch.stack(
        [value.double() for value in found.values()]
    ).tolist()  # one synchronization with the device
    return dict(zip(found, values, strict=True))


def importance_weights(logprobs: PolicyLogprobs, cap: float, level: Literal["token", "sequence"]) -> Tensor:
    """Return min(π_old / μ, cap), detached: one weight per token [B, T], or one per response [B, 1]."""
    log_ratio_BT = logprobs.old_BT - logprobs.sampler_BT
    if level == "sequence":
        log_ratio_BT = log_ratio_BT.sum(dim=1, keepdim=True)
    return ratio_of(log_ratio_BT).clamp(max=cap).detach()


def kl_estimate(logprobs_BT: Tensor, reference_BT: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Return an estimate per token of the divergence of the first policy from the second.

    Its mean over samples of the first policy is the divergence (k2: approximately). With d = log π_ref − log π:
    k1 = −d, k2 = d² / 2, k3 = e^d − d − 1 (Schulman, "Approximating KL Divergence", 2020). In k3, d is limited to
    `LOG_RATIO_LIMIT` (ours), so that the estimate and its gradient are finite.
    """
    d_BT = reference_BT - logprobs_BT
    if estimator == "k1":
        return -d_BT
    if estimator == "k2":
        return d_BT.square() / 2
    d_BT = d_BT.clamp(max=LOG_RATIO_LIMIT)
    return d_BT.exp() - d_BT - 1
