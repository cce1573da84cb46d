"""From the rewards of one optimizer batch to one number per response. Pure numpy, float64.

Source of the formulas: HPO, arXiv 2605.30201. What is ours is marked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Scaling = Literal["group", "batch", "none"]

STD_EPSILON = 1e-4
"""Added to the standard deviation, as in GRPO's implementations."""


def group_advantages(rewards: np.ndarray, valid: np.ndarray, scaling: Scaling = "group") -> np.ndarray:
    """A_i = (R_i − mean_g) / (std_g + 1e-4), with the Bessel-corrected standard deviation.

    A group whose valid rewards are all equal gets exactly 0, decided by max == min: subtracting a mean of sixteen
    times 0.1 from 0.1 leaves a rest that the small denominator would blow up.

    Args:
        rewards: float [P, G].
        valid: bool [P, G]. Responses whose verifier failed are False: they leave the group's statistics and get 0
        (ours).
        scaling: "group" divides by the group's standard deviation, "batch" by that of all centred valid rewards of
            varied groups, "none" does not divide.

    Returns:
        float64 [P, G].
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    masked = np.ma.masked_array(rewards, mask=~np.asarray(valid, dtype=bool))
    varied = (masked.max(axis=1) != masked.min(axis=1)).filled(False)
    centred = np.where(varied[:, None], (masked - masked.mean(axis=1, keepdims=True)).filled(0.0), 0.0)
    # A response at its group's mean has no side; subtraction may leave a rest of either sign.
    centred[np.abs(centred) <= 1e-14 * np.abs(rewards).max(axis=1, keepdims=True)] = 0.0
    if scaling == "none" or not varied.any():
        return centred
    if scaling == "group":
        deviation = masked.std(axis=1, ddof=1, keepdims=True).filled(0.0)
    else:
        used = centred[varied][~np.ma.getmaskarray(masked)[varied]]
        deviation = np.sqrt(np.square(used).sum() / max(used.size - 1, 1))
    return centred / (deviation + STD_EPSILON)


def overlong_penalties(lengths: np.ndarray, max_tokens: int, penalised_tokens: int) -> np.ndarray:
    """DAPO's soft over-long penalty (arXiv 2503.14476), with L = max_tokens and c = penalised_tokens: 0 up to L − c,
    then falling linearly to −1 at L, and −1 beyond. All 0 for c = 0.

    It is added to the reward that advantages are made of; the verifier's outcome stays what it is.
    """
    if penalised_tokens == 0:
        return np.zeros(lengths.shape)
    return -np.clip((lengths - (max_tokens - penalised_tokens)) / penalised_tokens, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class SignFractions:
    """p̂⁺ and p̂⁻: the shares of responses with a positive and with a negative advantage."""

    positive: float
    negative: float


def sign_fractions(advantages: np.ndarray) -> SignFractions:
    """Counted over the whole optimizer batch, whatever ranks it is later cut into (ours)."""
    return SignFractions(positive=float((advantages > 0).mean()), negative=float((advantages < 0).mean()))


def adaptive_alpha(shares: SignFractions, alpha_min: float) -> float:
    """A-HPO: α = clip(p̂⁺ / p̂⁻, α_min, 1). Without any negative advantage α is 1 (ours)."""
    if shares.negative == 0:
        return 1.0
    return float(np.clip(shares.positive / shares.negative, alpha_min, 1.0))


def hysteretic(advantages: np.ndarray, alpha: float) -> np.ndarray:
    """w_i A_i with w_i = 1 if A_i ≥ 0 else α."""
    return np.where(advantages < 0, alpha * advantages, advantages)
