"""Means over seeds and what they are worth: Student's t-intervals, and differences paired by seed. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean of `count` values, one per seed, and half the width of its 95 % interval (None for fewer than two)."""

    mean: float
    half_width: float | None
    count: int

    @property
    def excludes_zero(self) -> bool:
        return self.half_width is not None and abs(self.mean) > self.half_width


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Mean ± t · s / √n, with the Bessel-corrected s and the t of n - 1 degrees of freedom.

    It holds for values that are independent and roughly normal. With three seeds t is 4.3: wide, because so
    little is known.
    """
    count = len(values)
    if not count:
        return Estimate(math.nan, None, 0)
    mean = statistics.fmean(values)
    if count < 2:
        return Estimate(mean, None, count)
    return Estimate(mean, t_quantile(count - 1) * statistics.stdev(values) / math.sqrt(count), count)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate:
    """Of the differences `values[seed] - baseline[seed]`, over the seeds that both have.

    What a seed brings to both (the prompts, their order) is not in the differences' spread.
    """
    return mean_estimate([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())])


@cache
def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t for which |T| < t has the probability `confidence`."""
    low, high = 0.0, 1.0
    while _probability_within(high, degrees) < confidence:
        high *= 2
    for _ in range(80):  # halves the interval down to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if _probability_within(middle, degrees) < confidence else (low, middle)
    return high


def _probability_within(t: float, degrees: int) -> float:
    """P(|T| < t) for Student's T. Abramowitz and Stegun 26.7.3 and 26.7.4, exact for whole degrees of freedom."""
    theta = math.atan(t / math.sqrt(degrees))
    cosine_squared = math.cos(theta) ** 2
    odd = degrees % 2 == 1
    term, series = 1.0, 0.0
    for k in range((degrees - 1) // 2 if odd else degrees // 2):
        series += term
        term *= cosine_squared * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    if odd:
        return 2 / math.pi * (theta + math.sin(theta) * math.cos(theta) * series)
    return math.sin(theta) * series
