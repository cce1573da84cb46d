"""pass@k: how often at least one of k responses to a prompt is right. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cluster.core.types import ScoredGroup


def pass_at_k(judged: int, right: int, k: int) -> float:
    """Estimate from `judged` responses to one prompt, `right` of which are right: 1 − C(n − c, k) / C(n, k).

    It is the share, among all choices of k of the n responses, of those with a right one in it, and unbiased; the
    plain 1 − (1 − c/n)^k is too low. Source: Chen et al. 2021, arXiv 2107.03374, section 2.1. With k = 1 it is c / n.

    Raises:
        ValueError: not 0 ≤ right ≤ judged, or not 1 ≤ k ≤ judged.
    """
    if not (0 <= right <= judged and 1 <= k <= judged):
        raise ValueError(
            f"pass@{k} cannot be estimated from {judged} judged responses with {right} right ones"
        )
    choices = math.comb(judged, k)
    # Whole numbers up to the division: no rounding adds up.
    return (choices - math.comb(judged - right, k)) / choices


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, … up to `largest`: the k that are worth a look."""
    return [2**exponent for exponent in range(largest.bit_length())]


def pass_at_k_estimates(groups: Sequence[ScoredGroup], k: int) -> list[float]:
    """pass@k of each prompt of `groups`. A failed verdict is no response, and a prompt that is then left with fewer
    than k of them says nothing."""
    return [pass_at_k(group.judged, group.right, k) for group in groups if group.judged >= k]


def mean_pass_at_k(groups: Sequence[ScoredGroup], k: int) -> float:
    """pass@k over the prompts of `groups` that say anything. NaN if none does."""
    estimates = pass_at_k_estimates(groups, k)
    return math.fsum(estimates) / len(estimates) if estimates else math.nan
