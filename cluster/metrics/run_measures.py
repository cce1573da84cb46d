"""What one finished run comes to: a number per measure, from the rows of its `metrics.jsonl`. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Row = Mapping[str, Any]
LAST_SHARE = 0.1
"""Of the steps: over these the final reward is taken, since a single batch's says little."""


@dataclass(frozen=True, slots=True)
class Measure:
    """`scale` and `decimals` are for showing it; the title has the unit."""

    key: str
    title: str
    meaning: str
    of: Callable[[Sequence[Row]], float]
    scale: float = 100.0
    decimals: int = 1


def curve(rows: Sequence[Row], key: str) -> list[tuple[int, float]]:
    """(step, value) wherever there is a value."""
    return [(row["step"], row[key]) for row in rows if key in row and math.isfinite(row[key])]


def final_value(rows: Sequence[Row], key: str) -> float:
    points = curve(rows, key)
    return points[-1][1] if points else math.nan


def mean_over_course(rows: Sequence[Row], key: str) -> float:
    """Area under the curve (trapezoids between the points) divided by the steps from the first point to the last."""
    points = curve(rows, key)
    if len(points) < 2:
        return points[0][1] if points else math.nan
    area = sum((b - a) * (left + right) / 2 for (a, left), (b, right) in pairwise(points))
    return area / (points[-1][0] - points[0][0])


def late_mean(rows: Sequence[Row], key: str) -> float:
    """Mean over the last tenth of the steps."""
    points = curve(rows, key)
    last = points[len(points) - max(1, round(LAST_SHARE * len(points))) :]
    return statistics.fmean(value for _, value in last) if last else math.nan


PASS_AT_1, REWARD, LENGTH = "eval/pass_at_1", "reward/mean", "lengths/mean"
MEASURES = (
    Measure(
        "pass_at_1_final",
        "pass@1 final, %",
        "of the last evaluation",
        lambda rows: final_value(rows, PASS_AT_1),
    ),
    Measure(
        "pass_at_1_mean",
        "pass@1 area, %",
        "area under the curve of the evaluations, by the steps that it spans",
        lambda rows: mean_over_course(rows, PASS_AT_1),
    ),
    Measure(
        "reward_final",
        "reward final",
        "mean reward of the batches in the last tenth of the steps",
        lambda rows: late_mean(rows, REWARD),
        scale=1.0,
        decimals=3,
    ),
    Measure(
        "reward_mean",
        "reward area",
        "area under the curve of the batches' mean rewards, by the steps that it spans",
        lambda rows: mean_over_course(rows, REWARD),
        scale=1.0,
        decimals=3,
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
