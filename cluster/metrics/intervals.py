"""Confidence intervals: of an evaluation's mean over prompts, and of a comparison's mean over seeds. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev, variance

CONFIDENCE = 0.95
METHOD = "Wilson score interval with the effective number of responses and Student's t over prompts"


def interval(estimates: Sequence[float], responses: int) -> tuple[float, float] | None:
    """Return a confidence interval of the mean of `estimates`, which has one value in [0, 1] per prompt; None for fewer
    than two prompts.

    The prompts are the random sample. The `responses` to them are not independent, since some prompts are easier than
    others. So the standard error is that of the mean over prompts. It determines the effective number of responses,
    m (1 − m) / se² (Kish's effective sample size): as many independent responses would give the same standard error.
    Wilson's score interval uses this number, and Student's t with one degree of freedom less than prompts (Dean and
    Pagano 2015 compare such intervals). Unlike mean ± 1.96 se it stays within [0, 1], and it has a width even if all
    estimates are 0 or all are 1: then each prompt counts as one response.
    """
    prompts = len(estimates)
    if prompts < 2:
        return None
    mean = fmean(estimates)
    squared_error = variance(estimates, mean) / prompts
    effective = mean * (1 - mean) / squared_error if squared_error else prompts
    effective = min(max(effective, prompts - 1), responses)
    t = t_quantile(prompts - 1, CONFIDENCE)
    center = (mean + t**2 / (2 * effective)) / (1 + t**2 / effective)
    half = t / (1 + t**2 / effective) * math.sqrt(mean * (1 - mean) / effective + (t / (2 * effective)) ** 2)
    # Rounding must not exclude the mean.
    return max(0.0, min(center - half, mean)), min(1.0, max(center + half, mean))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean of `count` values, one per seed, with half the width of its 95 % interval (None for fewer than two)."""

    mean: float
    half_width: float | None
    count: int

    @property
    def excludes_zero(self) -> bool:
        return self.half_width is not None and abs(self.mean) > self.half_width


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Return mean ± t · s / √n, with the Bessel-corrected s and Student's t with n − 1 degrees of freedom.

    The interval holds for independent, roughly normal values. With three seeds t is 4.3, so the interval is wide.
    """
    count = len(values)
    if not count:
        return Estimate(math.nan, None, 0)
    mean = fmean(values)
    if count < 2:
        return Estimate(mean, None, count)
    return Estimate(mean, t_quantile(count - 1) * stdev(values) / math.sqrt(count), count)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate:
    """Return the mean of the differences `values[seed] - baseline[seed]`, over the seeds that both have.

    The effect of a seed on both runs (the prompts, their order) cancels out in the differences.
    """
    return mean_estimate([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())])


@cache
def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Return the t for which |T| < t has the probability `confidence`."""
    low, high = 0.0, 1.0
    while _probability_within(high, degrees) < confidence:
        high *= 2
    for _ in range(80):  # halves the interval down to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if _probability_within(middle, degrees) < confidence else (low, middle)
    return high


def _probability_within(t: float, degrees: int) -> float:
    """Return P(|T| < t) for Student's T: Abramowitz and Stegun 26.7.3 and 26.7.4, exact for integer degrees."""
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
