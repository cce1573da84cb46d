"""The group sizes that suit a model: predictions from the distribution of its pass rates. Pure numpy.

A group is informative if it has correct and incorrect responses; no other group has a gradient. docs/plan.md explains
the predictions and the signal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from cluster.metrics.intervals import CONFIDENCE
from cluster.metrics.pass_at_k import pass_at_k
from cluster.metrics.pass_rates import PassCounts, PassRates, Quantity
from learner.objective.objectives import SignFractions, adaptive_alpha

GROUP_SIZES = (4, 8, 16, 32, 64, 128)
"""The group sizes that are always predicted."""
NEARLY_BEST = 0.95
"""The fraction of the largest signal from which a group size counts as nearly the best."""


@dataclass(frozen=True, slots=True)
class GroupSize:
    """The predictions for groups of `responses` responses."""

    responses: int
    informative: Quantity
    """The fraction of groups that are informative."""
    measured_informative: float | None
    """The same without a model, from the sample alone; None for groups that are larger than the sampled ones."""
    alpha: Quantity
    """A-HPO's α in a large batch."""
    responses_per_informative_group: Quantity
    signal: Quantity
    """The part of a response that counts: 1 in large groups of prompts that are solved half of the time."""
    prompts: int | None
    """The number of prompts in a step; None if the responses of a step cannot be divided into such groups."""
    informative_groups_per_step: Quantity | None


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The group size to use with the given number of responses per step."""

    size: GroupSize
    nearly_best: tuple[int, ...]
    """The group sizes whose signal is nearly that of the best one; the suggested one is the smallest of them."""
    best_between: tuple[int, int]
    """The interval of the group size with the largest signal."""


def group_sizes(
    counts: PassCounts, rates: PassRates, step: int, parts: int, alpha_min: float, sizes: Iterable[int]
) -> list[GroupSize]:
    """Return the predictions for each of `sizes`, in ascending order.

    Args:
        counts: The sample.
        rates: The posterior after it.
        step: The number of responses in a step.
        parts: The number of equal parts into which the prompts of a step must be divisible.
        alpha_min: The lower bound of α.
        sizes: Group sizes of at least 2 responses.
    """
    return [
        _group_size(counts, rates, size, _prompts(size, step, parts), alpha_min)
        for size in sorted(set(sizes))
    ]


def suggestion(rates: PassRates, sizes: Sequence[GroupSize]) -> Suggestion:
    """Return the group size to use: the smallest one that is nearly the best. It has the most prompts per step, which
    the signal does not count.

    Raises:
        ValueError: if a step cannot be divided into groups of any of `sizes`.
    """
    usable = [size for size in sizes if size.prompts is not None]
    if not usable:
        raise ValueError("a step cannot be divided into groups of any of these sizes")
    enough = NEARLY_BEST * max(size.signal.estimate for size in usable)
    nearly_best = [size for size in usable if size.signal.estimate >= enough]
    signals = np.stack([signal(rates, size.responses) for size in usable], axis=1)
    is_best = signals.argmax(axis=1)[:, None] == np.arange(len(usable))
    cumulated = np.cumsum(rates.average(is_best))
    tail = (1 - CONFIDENCE) / 2
    low, high = (min(int(np.searchsorted(cumulated, at)), len(usable) - 1) for at in (tail, 1 - tail))
    return Suggestion(
        nearly_best[0],
        tuple(size.responses for size in nearly_best),
        (usable[low].responses, usable[high].responses),
    )


def signal(rates: PassRates, responses: int) -> np.ndarray:
    """Return 4 E[√(c (G − c)) / G]² / P(informative) for c correct ones of G responses: [points].

    √(c (G − c)) / G is the length of a group's update in the direction that makes correct responses more likely: with
    the advantages of GRPO, its correct and its incorrect responses count by this much each. Its noise has the variance
    1 / G if the group is informative, and 0 otherwise. So the square of signal to noise in N responses is N times the
    returned value, up to a factor that does not depend on G. The factor 4 makes the largest possible value 1.
    """
    length = sum(
        probability * math.sqrt(correct * (responses - correct)) / responses
        for correct, probability in enumerate(rates.count_probabilities(responses))
    )
    informative = rates.informative(responses)
    found: np.ndarray = 4 * np.square(length) / np.maximum(informative, np.finfo(float).tiny)
    return found


def sign_ratio(rates: PassRates, responses: int) -> np.ndarray:
    """Return p̂⁺ / p̂⁻ in a large batch: the expected number of correct responses in informative groups, divided by that
    of incorrect ones: [points]."""
    positive = rates.mean - rates.all_solved(responses)
    negative = (1 - rates.mean) - rates.none_solved(responses)
    ratio: np.ndarray = np.maximum(positive, 0.0) / np.maximum(negative, np.finfo(float).tiny)
    return ratio


def measured_informative(counts: PassCounts, responses: int) -> float | None:
    """Return the fraction of groups of `responses` that are informative, among all choices of so many of the sampled
    responses to a prompt; None if there are not so many. It is unbiased, as pass@k is."""
    n = counts.responses
    if responses > n:
        return None
    return fmean(
        pass_at_k(n, correct, responses) + pass_at_k(n, n - correct, responses) - 1
        for correct in counts.correct
    )


def largest_unseen_rate(trials: int) -> float:
    """Return the largest rate of success at which none of `trials` independent trials succeeds with a probability of
    5 %: the upper limit of Clopper and Pearson, about 3 / trials.

    Raises:
        ValueError: if there is no trial.
    """
    if trials < 1:
        raise ValueError("without a trial nothing is known")
    return -math.expm1(math.log(1 - CONFIDENCE) / trials)


def _group_size(
    counts: PassCounts, rates: PassRates, responses: int, prompts: int | None, alpha_min: float
) -> GroupSize:
    informative = rates.quantity(rates.informative(responses))

    def per_group(fraction: float) -> float:
        return responses / fraction if fraction else math.inf

    def alpha(ratio: float) -> float:
        return adaptive_alpha(SignFractions(positive=ratio, negative=1.0), alpha_min)

    return GroupSize(
        responses=responses,
        informative=informative,
        measured_informative=measured_informative(counts, responses),
        alpha=rates.quantity(sign_ratio(rates, responses)).under(alpha),
        responses_per_informative_group=informative.under(per_group),
        signal=rates.quantity(signal(rates, responses)),
        prompts=prompts,
        informative_groups_per_step=None
        if prompts is None
        else informative.under(lambda part: part * prompts),
    )


def _prompts(size: int, step: int, parts: int) -> int | None:
    """Return the number of groups of `size` in `step` responses; None if there is a rest or they are not divisible."""
    prompts, rest = divmod(step, size)
    return prompts if prompts and not rest and prompts % parts == 0 else None
