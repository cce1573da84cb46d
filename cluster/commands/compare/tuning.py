"""The results of a comparison's tuning: for each variant the best value of the tuned setting. Pure.

A variant that suits the learning rate of the file looks better than one that suits another rate. With a tuning, each
variant has its best value, chosen from the same grid on the same seeds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from cluster.commands.compare.comparison_file import value_text
from cluster.commands.compare.plan import Tuning
from cluster.metrics.run_measures import HEADLINES, Measure, Row


@dataclass(frozen=True, slots=True)
class Choice:
    """The values of the tuned setting that one variant was trained with, and the best of them."""

    by_seed: Mapping[float, Mapping[int, float]]
    """The measure by value and seed, of the runs that have it."""
    means: Mapping[float, float]
    """The mean of the measure over all seeds, of the values whose runs all have it. Only these can be chosen."""
    best: float | None
    """The value with the largest mean; None if no value has a mean."""

    @property
    def edge(self) -> Literal["smallest", "largest"] | None:
        """The end of the grid at which the best value is; None if it is between others."""
        ends: tuple[tuple[Literal["smallest", "largest"], float], ...] = (
            ("smallest", min(self.by_seed)),
            ("largest", max(self.by_seed)),
        )
        return next((name for name, end in ends if self.best == end), None)


def choose(by_seed: Mapping[float, Mapping[int, float]], seeds: Collection[int]) -> Choice:
    """Choose the value with the largest mean over `seeds`, the smaller one of two values with equal means.

    A value with a run that failed or has no measure cannot be chosen: the remaining seeds would be compared with other
    seeds.

    Args:
        by_seed: The measure by value and seed, for all values of the grid.
    """
    means = {
        value: fmean(found[seed] for seed in seeds)
        for value, found in by_seed.items()
        if found.keys() >= set(seeds)
    }
    return Choice(by_seed, means, max(means, key=lambda value: (means[value], -value), default=None))


@dataclass(frozen=True, slots=True)
class Tuned:
    """The results of a tuning."""

    tuning: Tuning
    choices: Mapping[str, Choice]
    """By variant."""
    missing: tuple[str, ...]
    """The names of the runs that have not finished, or have no measure."""

    @property
    def measure(self) -> Measure:
        """The measure that decided."""
        return measure_of(self.tuning)

    @property
    def chosen(self) -> dict[str, float]:
        """The best values of the variants that have one."""
        return {variant: choice.best for variant, choice in self.choices.items() if choice.best is not None}

    @property
    def undecided(self) -> list[str]:
        """The variants without a value that can be chosen."""
        return [variant for variant, choice in self.choices.items() if choice.best is None]


def measure_of(tuning: Tuning) -> Measure:
    """Return the measure that decides."""
    return next(measure for measure in HEADLINES if measure.key == tuning.config.measure)


def tuned_by(tuning: Tuning, rows: Mapping[str, Sequence[Row]]) -> Tuned:
    """Choose the values of all variants.

    Args:
        rows: The rows of metrics of each finished run of the tuning, by the name of the run.
    """
    measure = measure_of(tuning)
    by_variant: dict[str, dict[float, dict[int, float]]] = {}
    missing = []
    for run in tuning.runs:
        assert run.value is not None
        found = by_variant.setdefault(run.variant, {}).setdefault(run.value, {})
        value = measure.of(rows[run.name]) if run.name in rows else math.nan
        if math.isfinite(value):
            found[run.seed] = value
        else:
            missing.append(run.name)
    choices = {variant: choose(found, tuning.config.seeds) for variant, found in by_variant.items()}
    return Tuned(tuning, choices, tuple(missing))


def tuning_title(tuned: Tuned) -> str:
    """Return the title of the table."""
    return f"{tuned.measure.title} by {tuned.tuning.config.setting}"


def tuning_head(tuned: Tuned) -> list[str]:
    """Return the columns of the table."""
    return ["variant", *(value_text(value) for value in tuned.tuning.config.values), "chosen"]


def tuning_rows(tuned: Tuned) -> list[list[str]]:
    """Return the rows of the table: a variant, its means by value, and the chosen value."""
    measure = tuned.measure

    def shown(mean: float | None) -> str:
        return "–" if mean is None else f"{mean * measure.scale:.{measure.decimals}f}"

    return [
        [
            variant,
            *(shown(choice.means.get(value)) for value in tuned.tuning.config.values),
            "–" if choice.best is None else value_text(choice.best),
        ]
        for variant, choice in tuned.choices.items()
    ]


def tuning_notes(tuned: Tuned) -> list[str]:
    """Return the remarks that a reader needs besides the numbers, one line each."""
    further = {"smallest": "smaller", "largest": "larger"}
    found = [
        f"{variant}: the best value of {tuned.tuning.config.setting}, {value_text(choice.best)}, is the "
        f"{choice.edge} of the grid; a {further[choice.edge]} one may be better."
        for variant, choice in tuned.choices.items()
        if choice.best is not None and choice.edge is not None
    ]
    if tuned.missing:
        found.append(
            f"Tuning: not finished, or without {tuned.measure.title}: {', '.join(tuned.missing)}. The values of these "
            "runs could not be chosen for their variants."
        )
    return found


def tuning_json(tuned: Tuned) -> dict[str, Any]:
    """Return all numbers, unrounded, for programs."""
    config = tuned.tuning.config
    return {
        "setting": config.setting,
        "values": list(config.values),
        "seeds": list(config.seeds),
        "measure": config.measure,
        "runs": {run.name: list(run.arguments) for run in tuned.tuning.runs},
        "missing": list(tuned.missing),
        "variants": {
            variant: {
                "chosen": choice.best,
                "edge": choice.edge,
                "means": {value_text(value): mean for value, mean in choice.means.items()},
                "by_seed": {
                    value_text(value): {str(seed): number for seed, number in found.items()}
                    for value, found in choice.by_seed.items()
                },
            }
            for variant, choice in tuned.choices.items()
        },
    }
