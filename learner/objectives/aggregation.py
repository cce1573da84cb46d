"""How the tokens of a batch are added up: what each token of response i is multiplied by. Pure numpy, float64.

`lengths` is int [P, G]. A response that is masked has length 0: its tokens leave the sums over tokens, and it remains
one of the N responses, as in TRL's mask_truncated_completions.
"""

from __future__ import annotations

import numpy as np


def mean_over_responses(lengths: np.ndarray, max_response_tokens: int) -> np.ndarray:
    """1 / (N |τ_i|): the mean over responses of the mean over their tokens."""
    return 1.0 / (lengths.size * np.maximum(lengths, 1))


def mean_over_tokens(lengths: np.ndarray, max_response_tokens: int) -> np.ndarray:
    """1 / Σ |τ_i|: every token of the batch weighs the same. It is HPO's 1 / (N L̄), L̄ being the batch's mean length."""
    return np.full(lengths.shape, 1.0 / max(lengths.sum(), 1))


def sum_over_budget(lengths: np.ndarray, max_response_tokens: int) -> np.ndarray:
    """1 / (N max_response_tokens): the same for every batch, whatever lengths it has."""
    return np.full(lengths.shape, 1.0 / (lengths.size * max_response_tokens))
