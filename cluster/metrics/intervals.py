"""How sure an evaluation is of its means. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, variance

from cluster.metrics.t_quantile import t_quantile

CONFIDENCE = 0.95
METHOD = "Wilson score interval with the effective number of responses and Student's t over prompts"


def interval(estimates: Sequence[float], responses: int) -> tuple[float, float] | None:
    """A confidence interval of the mean of `estimates`, one in [0, 1] per prompt; None from fewer than two.

    Prompts are what was drawn at random; the `responses` to them are not independent, since some prompts are easier
    than others. So the standard error is that of the mean over prompts, and from it follows how many independent
    responses would be as telling: m (1 − m) / se² (Kish's effective sample size). Wilson's score interval takes that
    number, and Student's t with one degree of freedom less than prompts (Dean and Pagano 2015 compare such intervals).
    Unlike mean ± 1.96 se it stays within [0, 1], and has a width where all estimates are 0 or all are 1: then a prompt
    counts as one response.
    """
    prompts = len(estimates)
    if prompts < 2:
        return None
    mean = fmean(estimates)
    squared_error = variance(estimates, mean) / prompts
    telling = mean * (1 - mean) / squared_error if squared_error else prompts
    telling = min(max(telling, prompts - 1), responses)
    t = t_quantile(prompts - 1, CONFIDENCE)
    middle = (mean + t**2 / (2 * telling)) / (1 + t**2 / telling)
    half = t / (1 + t**2 / telling) * math.sqrt(mean * (1 - mean) / telling + (t / (2 * telling)) ** 2)
    return max(0.0, min(middle - half, mean)), min(
        1.0, max(middle + half, mean)
    )  # rounding is not to part them
