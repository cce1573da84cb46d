"""The table of objectives, and the surrogates and rules that its entries are made of.

An entry of `OBJECTIVES` is the complete definition of an objective. The other parts of the project look an objective up
here by its name: the batch builder, the loss, the checks of a configuration, and the generated documentation.

    surrogate_it     the quantity to maximize per token, such as min( r_it A_i , clip(r_it, 1 − ε_low, 1 + ε_high) A_i )

r = π_θ / π_old. `A_i` already carries the hysteretic weight (`training_batch.py`); `loss.py` sums the surrogates.
Importing this module does not import torch, because a configuration is checked and a batch is built without it: the
surrogates use tensor methods only. `docs/objectives.md` has the formulas and their sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from cluster.core.config import ObjectiveConfig

if TYPE_CHECKING:
    from torch import Tensor

Scaling = Literal["group", "batch", "whole_batch", "mean", "leave_one_out", "none"]
"""The factor between R_i − R̄ of a group and the advantage. `training_batch.group_advantages` has the formulas."""

# --- Surrogates: pure functions of one micro-batch of tensors.

LOG_RATIO_LIMIT = 20.0
"""The largest log-ratio that is exponentiated (ours). Larger ones count as this one, with a gradient of 0. Without a
limit, a ratio that overflows to infinity gets NaN as its gradient even where it is clipped: 0 × inf."""

DUAL_CLIP = 3.0
"""The usual c > 1 of dual clip, the largest ratio that counts for a negative advantage (arXiv 1912.09729)."""

POSITIVE_TEMPERATURE, NEGATIVE_TEMPERATURE = 1.0, 1.05
"""SAPO's τ for positive and for negative advantages: the gate of a negative advantage closes sooner."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The input of a surrogate: one micro-batch, with zeros in the padding (which may have held anything; 0 × inf is
    not 0)."""

    logprobs_BT: Tensor
    """log π_θ, with gradient."""
    log_ratio_BT: Tensor
    """log r, with gradient."""
    advantages_B1: Tensor
    """w_i A_i."""
    mask_BT: Tensor
    """True on response tokens."""


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The values to maximize, per token, and the tokens at which a bound acted. The padding is not masked yet."""

    values_BT: Tensor
    ratio_BT: Tensor
    """The ratio that the bounds apply to: each token's own, or its response's."""
    clipped_low_BT: Tensor
    clipped_high_BT: Tensor


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of the ratio."""

    low: float
    """`clip_low`: ratios below 1 − low are clipped."""
    high: float
    """`clip_high`: ratios above 1 + high are clipped."""
    dual: float | None = None
    """`dual_clip`: the largest ratio that counts for a negative advantage; None if any does."""


SurrogateFunction = Callable[[Tokens, Bounds], Surrogate]
"""Compute a surrogate from the tokens and the bounds."""


def ratio_of(log_ratio: Tensor) -> Tensor:
    """Return exp(log_ratio), with a gradient that is finite for every log-ratio. Its size is that of `log_ratio`."""
    return log_ratio.clamp(max=LOG_RATIO_LIMIT).exp()


def token_clip(tokens: Tokens, bounds: Bounds) -> Surrogate:
    """Return min(r A, clip(r) A) with the ratio of each token."""
    return _pessimistic(ratio_of(tokens.log_ratio_BT), tokens.advantages_B1, bounds)


def sequence_clip(tokens: Tokens, bounds: Bounds) -> Surrogate:
    """Return min(s A, clip(s) A) with s_i = exp(mean_t log r_it). Each token of a response has the response's value, so
    that the scale 1 / (N |τ_i|) adds up to 1 / N over the response."""
    length_B1 = tokens.mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    ratio_B1 = ratio_of(tokens.log_ratio_BT.sum(dim=1, keepdim=True) / length_B1)
    ratio_BT = ratio_B1.expand_as(tokens.log_ratio_BT)
    return _pessimistic(ratio_BT, tokens.advantages_B1, bounds)


def response_clip(tokens: Tokens, bounds: Bounds) -> Surrogate:
    """Return min(s A, clip(s) A) / |τ_i| with s_i = exp(Σ_t log r_it), the ratio of the probabilities of the whole
    response. Its tokens have equal parts of its value, so that the scale 1 / N adds up to 1 / N over the response."""
    length_B1 = tokens.mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    ratio_BT = ratio_of(tokens.log_ratio_BT.sum(dim=1, keepdim=True)).expand_as(tokens.log_ratio_BT)
    clipped = _pessimistic(ratio_BT, tokens.advantages_B1, bounds)
    return replace(clipped, values_BT=clipped.values_BT / length_B1)


def _pessimistic(ratio: Tensor, advantages: Tensor, bounds: Bounds) -> Surrogate:
    """Return min(r A, clip(r) A), and with dual clip max(min(r A, clip(r) A), c A) for A < 0.

    Without dual clip the surrogate of a negative advantage is unlimited: r A falls with r, and the clip acts only on
    small ratios. With it, the gradient above r = c is 0."""
    values = (ratio * advantages).minimum(ratio.clamp(1 - bounds.low, 1 + bounds.high) * advantages)
    is_negative = advantages < 0
    clipped_high = (ratio > 1 + bounds.high) & (advantages > 0)
    if bounds.dual is not None:
        values = values.maximum(bounds.dual * advantages).where(is_negative, values)
        clipped_high = clipped_high | ((ratio > bounds.dual) & is_negative)
    return Surrogate(values, ratio, (ratio < 1 - bounds.low) & is_negative, clipped_high)


def soft_gate(tokens: Tokens, bounds: Bounds) -> Surrogate:
    """Return (4/τ) σ(τ (r − 1)) A. Its slope is A at r = 1 and fades on both sides. It has no bounds, so no token is
    clipped."""
    advantages = tokens.advantages_B1
    temperature = advantages.new_full(advantages.shape, NEGATIVE_TEMPERATURE)
    temperature = temperature.masked_fill(advantages > 0, POSITIVE_TEMPERATURE)
    ratio = ratio_of(tokens.log_ratio_BT)
    gate = 4 / temperature * (temperature * (ratio - 1)).sigmoid()
    nowhere = tokens.mask_BT.new_zeros(tokens.mask_BT.shape)
    return Surrogate(gate * advantages, ratio, nowhere, nowhere)


def detached_weight(tokens: Tokens, bounds: Bounds) -> Surrogate:
    """Return stopgrad(clip(r)) A log π. The bounds limit a token's weight but never remove its gradient, whatever the
    sign of the advantage."""
    ratio = ratio_of(tokens.log_ratio_BT).detach()
    weight = ratio.clamp(1 - bounds.low, 1 + bounds.high)
    has_advantage = tokens.advantages_B1 != 0
    return Surrogate(
        weight * tokens.advantages_B1 * tokens.logprobs_BT,
        ratio,
        (ratio < 1 - bounds.low) & has_advantage,
        (ratio > 1 + bounds.high) & has_advantage,
    )


# --- Scale rules: the factor of each token in the sum over the batch. Pure numpy.

ScaleRule = Callable[[np.ndarray, int], np.ndarray]
"""Compute each token's factor from the lengths |τ_i| of all responses of the batch and the largest length allowed.

Both arrays are [N], without any padding, so the rules need not know how many responses each group has. A masked
response has length 0: it leaves the sums over tokens but remains one of the N responses."""


def mean_of_means(lengths: np.ndarray, max_response_tokens: int) -> np.ndarray:
    """Return 1 / (N |τ_i|): the mean over responses of the mean over tokens."""
    factors: np.ndarray = 1.0 / (lengths.size * np.maximum(lengths, 1))
    return factors


def mean_of_sums(lengths: np.ndarray, max_response_tokens: int) -> np.ndarray:
    """Return 1 / N: the mean over responses of the sum over tokens."""
    return np.full(lengths.shape, 1.0 / lengths.size)


def mean_over_tokens(lengths: np.ndarray, max_response_tokens: int) -> np.ndarray:
    """Return 1 / Σ|τ| = 1 / (N · L̄): every token of the batch has the same weight."""
    return np.full(lengths.shape, 1.0 / max(lengths.sum(), 1))


def constant_length(lengths: np.ndarray, max_response_tokens: int) -> np.ndarray:
    """Return 1 / (N · L_max), which does not depend on the sampled lengths."""
    return np.full(lengths.shape, 1.0 / (lengths.size * max_response_tokens))


# --- Rules for α, the weight of negative advantages.


@dataclass(frozen=True, slots=True)
class SignFractions:
    """p̂⁺ and p̂⁻: the fractions of responses with a positive and with a negative advantage."""

    positive: float
    negative: float


def sign_fractions(advantages: np.ndarray) -> SignFractions:
    """Count both signs over the responses of the whole optimizer batch, however it is split over ranks later (ours)."""
    return SignFractions(positive=float((advantages > 0).mean()), negative=float((advantages < 0).mean()))


def adaptive_alpha(fractions: SignFractions, alpha_min: float) -> float:
    """Return A-HPO's α = clip(p̂⁺ / p̂⁻, α_min, 1). Without any negative advantage α is 1 (ours)."""
    if fractions.negative == 0:
        return 1.0
    return float(np.clip(fractions.positive / fractions.negative, alpha_min, 1.0))


AlphaRule = Callable[[SignFractions, ObjectiveConfig], float]
"""Compute α from the batch's fractions of positive and negative advantages."""


def no_hysteresis(fractions: SignFractions, config: ObjectiveConfig) -> float:
    """Return 1: both signs have the same weight."""
    return 1.0


def fixed(fractions: SignFractions, config: ObjectiveConfig) -> float:
    """Return the configured α."""
    return config.alpha


def adaptive(fractions: SignFractions, config: ObjectiveConfig) -> float:
    """Return A-HPO's α of this batch."""
    return adaptive_alpha(fractions, config.alpha_min)


# --- The table.

UNBOUNDED_LOW = 1.0
"""A `clip_low` that never acts: no ratio is below 1 − 1 = 0."""
UNBOUNDED_HIGH = float("inf")
"""A `clip_high` that never acts."""


@dataclass(frozen=True, slots=True)
class Objective:
    """One objective: its surrogate, its rules, and the defaults of the four settings that may be null."""

    surrogate: SurrogateFunction
    scale_rule: ScaleRule
    alpha_rule: AlphaRule = no_hysteresis
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    """None if the surrogate has no such bound."""
    advantage_scaling: Scaling = "group"

    @property
    def bounds(self) -> Bounds:
        """The bounds of the ratio."""
        return Bounds(self.clip_low, self.clip_high, self.dual_clip)

    @property
    def has_clip(self) -> bool:
        """True if `clip_low` and `clip_high` have an effect."""
        return self.surrogate is not soft_gate

    @property
    def uses_alpha(self) -> bool:
        """True if the setting `alpha` has an effect."""
        return self.alpha_rule is fixed

    @property
    def uses_alpha_min(self) -> bool:
        """True if the setting `alpha_min` has an effect."""
        return self.alpha_rule is adaptive

    def on_policy_gradient(self, config: ObjectiveConfig) -> tuple[ScaleRule, AlphaRule, Scaling]:
        """Return what the gradient at r = 1 depends on; it is the same for two objectives if this is equal. Every
        surrogate has the slope A there, so only scale, α and the scaling of advantages make a difference."""
        has_no_hysteresis = self.uses_alpha and config.alpha == 1
        return (
            self.scale_rule,
            no_hysteresis if has_no_hysteresis else self.alpha_rule,
            self.advantage_scaling,
        )


OBJECTIVES: dict[str, Objective] = {
    "grpo": Objective(token_clip, mean_of_means),
    "dr_grpo": Objective(token_clip, constant_length, advantage_scaling="none"),
    "dapo": Objective(token_clip, mean_over_tokens, clip_high=0.28),
    "gspo": Objective(sequence_clip, mean_of_means, clip_low=3e-4, clip_high=4e-4),
    "sapo": Objective(soft_gate, mean_of_means, clip_low=UNBOUNDED_LOW, clip_high=UNBOUNDED_HIGH),
    "cispo": Objective(detached_weight, mean_over_tokens, clip_low=UNBOUNDED_LOW, clip_high=4.0),
    "hpo": Objective(token_clip, mean_over_tokens, fixed),
    "a_hpo": Objective(token_clip, mean_over_tokens, adaptive),
    "maxrl": Objective(token_clip, mean_over_tokens, advantage_scaling="mean"),
    "rloo": Objective(response_clip, mean_of_sums, advantage_scaling="leave_one_out"),
    "reinforce_pp": Objective(token_clip, mean_over_tokens, advantage_scaling="whole_batch"),
    "grpo_dual_clip": Objective(token_clip, mean_of_means, dual_clip=DUAL_CLIP),
    "hpo_dual_clip": Objective(token_clip, mean_over_tokens, fixed, dual_clip=DUAL_CLIP),
    "a_hpo_dual_clip": Objective(token_clip, mean_over_tokens, adaptive, dual_clip=DUAL_CLIP),
}
"""All objectives by the name that `objective.name` selects."""


def resolve(config: ObjectiveConfig) -> Objective:
    """Return the configured objective, in which each setting that is not null replaces the default."""
    default = OBJECTIVES[config.name]
    return replace(
        default,
        clip_low=default.clip_low if config.clip_low is None else config.clip_low,
        clip_high=default.clip_high if config.clip_high is None else config.clip_high,
        dual_clip=default.dual_clip if config.dual_clip is None else config.dual_clip,
        advantage_scaling=config.advantage_scaling or default.advantage_scaling,
    )
