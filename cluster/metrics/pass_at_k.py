"""pass@k: how often at least one of k responses to a prompt is correct. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cluster.core.types import ScoredGroup


def pass_at_k(valid: int, correct: int, k: int) -> float:
    """Estimate from `valid` responses to one prompt, `correct` of which are correct: 1 − C(n − c, k) / C(n, k).

    It is the share, among all choices of k of the n responses, of those with a correct one in it, and unbiased; the
    plain 1 − (1 − c/n)^k is too low. Source: Chen et al. 2021, arXiv 2107.03374, section 2.1. With k = 1 it is c / n.

    Raises:
        ValueError: not 0 ≤ correct ≤ valid, or not 1 ≤ k ≤ valid.
    """
    if not (0 <= correct <= valid and 1 <= k <= valid):
        raise ValueError(
            f"pass@{k} cannot be estimated from {valid} valid responses with {correct} correct ones"
        )
    choices = math.comb(valid, k)
    # Whole numbers up to the division: no rounding adds up.
    return (choices - math.comb(valid - correct, k)) / choices


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, … up to `largest`: the k that are worth a look."""
    return [2**exponent for exponent in range(largest.bit_length())]


def pass_at_k_estimates(groups: Sequence[ScoredGroup], k: int) -> list[float]:
    """pass@k of each prompt of `groups`. A failed verdict is no response, and a prompt that is then left with fewer
    than k of them says nothing."""
    return [pass_at_k(group.valid, group.correct, k) for group in groups if group.valid >= k]


def mean_pass_at_k(groups: Sequence[ScoredGroup], k: int) -> float:
    """pass@k over the prompts of `groups` that say anything. NaN if none does."""
    estimates = pass_at_k_estimates(groups, k)
    return math.fsum(estimates) / len(estimates) if estimates else math.nan
