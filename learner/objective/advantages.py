"""Advantages: one number per response, computed from the rewards of one optimizer batch. Pure numpy, float64.

Source of the formulas: HPO, arXiv 2605.30201. Choices of our own are marked (ours).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Scaling = Literal["group", "batch", "none"]

STD_EPSILON = 1e-4
"""The constant added to the standard deviation, as in GRPO's implementations."""


def group_advantages(rewards: np.ndarray, valid: np.ndarray, scaling: Scaling = "group") -> np.ndarray:
    """Return A_i = (R_i − mean_g) / (std_g + 1e-4), with the Bessel-corrected standard deviation.

    A group whose valid rewards are all equal gets exactly 0. Equality is tested by max == min, because subtracting the
    mean of sixteen times 0.1 from 0.1 leaves a rounding error that the small denominator would amplify.

    Args:
        rewards: float [P, G].
        valid: bool [P, G]. False for responses whose verifier failed: they are left out of the group's statistics and
            get 0 (ours).
        scaling: "group" divides by the group's standard deviation, "batch" by that of all centered valid rewards of
            the groups with reward variance, "none" does not divide.

    Returns:
        float64 [P, G].
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    ma: Any = np.ma  # numpy does not annotate masked arrays
    masked = ma.masked_array(rewards, mask=~np.asarray(valid, dtype=bool))
    varied: np.ndarray = (masked.max(axis=1) != masked.min(axis=1)).filled(False)
    centered = np.where(varied[:, None], (masked - masked.mean(axis=1, keepdims=True)).filled(0.0), 0.0)
    # A response at its group's mean has advantage 0; the subtraction may leave a rounding error of either sign.
    centered[np.abs(centered) <= 1e-14 * np.abs(rewards).max(axis=1, keepdims=True)] = 0.0
    if scaling == "none" or not varied.any():
        return centered
    deviation: np.ndarray
    if scaling == "group":
        deviation = masked.std(axis=1, ddof=1, keepdims=True).filled(0.0)
    else:
        used = centered[varied][~ma.getmaskarray(masked)[varied]]
        deviation = np.sqrt(np.square(used).sum() / max(used.size - 1, 1))
    scaled: np.ndarray = centered / (deviation + STD_EPSILON)
    return scaled


def overlong_penalties(lengths: np.ndarray, max_tokens: int, penalized_tokens: int) -> np.ndarray:
    """Return DAPO's soft over-long penalty (arXiv 2503.14476), with L = max_tokens and c = penalized_tokens: 0 up to
    L − c, then falling linearly to −1 at L, and −1 beyond. All penalties are 0 for c = 0.

    The penalty is added to the reward from which advantages are computed; the verifier's outcome does not change.
    """
    if penalized_tokens == 0:
        return np.zeros(lengths.shape)
    penalties: np.ndarray = -np.clip((lengths - (max_tokens - penalized_tokens)) / penalized_tokens, 0.0, 1.0)
    return penalties


@dataclass(frozen=True, slots=True)
class SignFractions:
    """p̂⁺ and p̂⁻: the fractions of responses with a positive and with a negative advantage."""

    positive: float
    negative: float


def sign_fractions(advantages: np.ndarray) -> SignFractions:
    """Count both signs over the whole optimizer batch, however it is split over ranks later (ours)."""
    return SignFractions(positive=float((advantages > 0).mean()), negative=float((advantages < 0).mean()))


def adaptive_alpha(fractions: SignFractions, alpha_min: float) -> float:
    """Return A-HPO's α = clip(p̂⁺ / p̂⁻, α_min, 1). Without any negative advantage α is 1 (ours)."""
    if fractions.negative == 0:
        return 1.0
    return float(np.clip(fractions.positive / fractions.negative, alpha_min, 1.0))


def hysteretic(advantages: np.ndarray, alpha: float) -> np.ndarray:
    """Return w_i A_i with w_i = 1 if A_i ≥ 0 else α."""
    return np.where(advantages < 0, alpha * advantages, advantages)
