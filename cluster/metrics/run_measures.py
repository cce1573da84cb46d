"""Measures that summarize a finished run, each as one number from the rows of its `metrics.jsonl`. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Row = Mapping[str, Any]
LATE_FRACTION = 0.1
"""The fraction of the steps, at the end of the run, whose mean is a final value: a single batch is too noisy."""
EARLY_FRACTION = 0.25
"""The fraction of the steps, at the beginning of the run, whose mean is an early value."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One number per run; the title has its unit."""

    key: str
    title: str
    meaning: str
    of: Callable[[Sequence[Row]], float]
    scale: float = 100.0
    """The factor by which values are multiplied for display."""
    decimals: int = 1


def curve(rows: Sequence[Row], key: str) -> list[tuple[int, float]]:
    """Return (step, value) for each row with a finite value."""
    return [(row["step"], row[key]) for row in rows if key in row and math.isfinite(row[key])]


def final_value(rows: Sequence[Row], key: str) -> float:
    """Return the last finite value; NaN without one."""
    points = curve(rows, key)
    return points[-1][1] if points else math.nan


def mean_over_course(rows: Sequence[Row], key: str) -> float:
    """Return the area under the curve (trapezoidal rule) divided by the number of steps that it spans."""
    points = curve(rows, key)
    if len(points) < 2:
        return points[0][1] if points else math.nan
    area = sum((b - a) * (left + right) / 2 for (a, left), (b, right) in pairwise(points))
    return area / (points[-1][0] - points[0][0])


def late_mean(rows: Sequence[Row], key: str) -> float:
    """Return the mean over the last tenth of the steps."""
    points = curve(rows, key)
    last = points[len(points) - max(1, round(LATE_FRACTION * len(points))) :]
    return statistics.fmean(value for _, value in last) if last else math.nan


def early_mean(rows: Sequence[Row], key: str) -> float:
    """Return the mean over the first quarter of the steps."""
    points = curve(rows, key)
    first = points[: max(1, round(EARLY_FRACTION * len(points)))]
    return statistics.fmean(value for _, value in first) if first else math.nan


def mean_of_steps(rows: Sequence[Row], *keys: str) -> float:
    """Return the mean over the steps of the sum of `keys`, over the steps that have all of them."""
    curves = [dict(curve(rows, key)) for key in keys]
    steps = set.intersection(*(set(points) for points in curves))
    return statistics.fmean(sum(points[step] for points in curves) for step in steps) if steps else math.nan


PASS_AT_1, REWARD, LENGTH = "eval/pass_at_1", "reward/mean", "response_length/mean"
HEADLINES = (
    Measure(
        "pass_at_1_final",
        "pass@1 final, %",
        "pass@1 of the last evaluation",
        lambda rows: final_value(rows, PASS_AT_1),
    ),
    Measure(
        "pass_at_1_area",
        "pass@1 area, %",
        "area under the pass@1 curve of the evaluations, divided by the number of steps that it spans",
        lambda rows: mean_over_course(rows, PASS_AT_1),
    ),
    Measure(
        "pass_at_k_final",
        "pass@k final, %",
        "pass@k of the last evaluation, with k = `evaluation.responses_per_prompt`; absent with one response per "
        "prompt",
        lambda rows: final_value(rows, "eval/pass_at_k"),
    ),
    Measure(
        "reward_early",
        "reward early",
        "mean reward of the batches in the first quarter of the steps",
        lambda rows: early_mean(rows, REWARD),
        scale=1.0,
        decimals=3,
    ),
    Measure(
        "reward_area",
        "reward area",
        "area under the curve of the batches' mean rewards, divided by the number of steps that it spans",
        lambda rows: mean_over_course(rows, REWARD),
        scale=1.0,
        decimals=3,
    ),
)
"""The measures of success, of which larger is better. A comparison shows their differences."""
DETAILS = (
    Measure(
        "reward_final",
        "reward final",
        "mean reward of the batches in the last tenth of the steps",
        lambda rows: late_mean(rows, REWARD),
        scale=1.0,
        decimals=3,
    ),
    Measure(
        "alpha",
        "α",
        "weight of the negative advantages, mean over the steps",
        lambda rows: mean_of_steps(rows, "objective/alpha"),
        scale=1.0,
        decimals=2,
    ),
    Measure(
        "entropy_final",
        "entropy final",
        "entropy of the policy in the last tenth of the steps, mean over response tokens",
        lambda rows: late_mean(rows, "objective/entropy"),
        scale=1.0,
        decimals=3,
    ),
    Measure(
        "clipped",
        "clipped, %",
        "fraction of tokens that the objective clipped at one of its bounds, mean over the steps",
        lambda rows: mean_of_steps(rows, "objective/clip_fraction_low", "objective/clip_fraction_high"),
        decimals=2,
    ),
    Measure(
        "length_final",
        "tokens final",
        "mean response length of the batches in the last tenth of the steps",
        lambda rows: late_mean(rows, LENGTH),
        scale=1.0,
        decimals=1,
    ),
)
"""The measures that help to explain a difference."""
MEASURES = (*HEADLINES, *DETAILS)
