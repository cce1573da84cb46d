"""The results of a comparison: estimates per variant and measure, and differences from the baseline. Pure.

results_of(comparison, rows) ─▶ Results ─▶ as_json │ as_markdown │ tables (for the terminal)
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from cluster.commands.compare.plan import Comparison, same_gradient
from cluster.commands.compare.tuning import (
    Tuned,
    tuning_head,
    tuning_json,
    tuning_notes,
    tuning_rows,
    tuning_title,
)
from cluster.metrics.intervals import CONFIDENCE, Estimate, mean_estimate, paired_difference
from cluster.metrics.run_measures import DETAILS, HEADLINES, MEASURES, Measure, Row

ValuesBySeed = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Results:
    """The measured values of the finished runs."""

    comparison: Comparison
    values: Mapping[str, Mapping[str, ValuesBySeed]]
    """The values by measure key, variant and seed, without those that are not finite."""
    missing: tuple[str, ...]
    """The names of the runs that are not finished."""
    tuned: Tuned | None = None
    """The results of the tuning; None without one."""

    def estimate(self, measure: Measure, variant: str) -> Estimate:
        """Return the mean of a variant over its seeds, with an interval."""
        return mean_estimate(list(self.values[measure.key][variant].values()))

    def difference(self, measure: Measure, variant: str) -> Estimate:
        """Return the mean difference from the baseline, paired by seed, with an interval."""
        values = self.values[measure.key]
        return paired_difference(values[variant], values[self.comparison.baseline])


def results_of(
    comparison: Comparison, rows: Mapping[str, Sequence[Row]], tuned: Tuned | None = None
) -> Results:
    """Measure all finished runs.

    Args:
        rows: The rows of metrics of each finished run, by the name of the run.
        tuned: The results of the tuning, if the comparison has one. It has chosen the values of its runs.
    """
    values = {
        measure.key: {
            variant: {
                run.seed: value
                for run in comparison.of_variant(variant)
                if run.name in rows and math.isfinite(value := measure.of(rows[run.name]))
            }
            for variant in comparison.variants
        }
        for measure in MEASURES
    }
    missing = tuple(run.name for run in comparison.runs if run.name not in rows)
    return Results(comparison, values, missing, tuned)


def as_json(results: Results) -> dict[str, Any]:
    """Return all numbers, unrounded, for programs."""
    comparison = results.comparison
    return {
        "name": comparison.name,
        "baseline": comparison.baseline,
        "seeds": list(comparison.seeds),
        "confidence": CONFIDENCE,
        "runs": {run.name: list(run.arguments) for run in comparison.runs},
        "missing": list(results.missing),
        "tuning": None if results.tuned is None else tuning_json(results.tuned),
        "measures": {
            measure.key: {
                variant: {
                    "by_seed": {
                        str(seed): value for seed, value in results.values[measure.key][variant].items()
                    },
                    "estimate": _json(results.estimate(measure, variant)),
                    "difference": _json(results.difference(measure, variant))
                    if variant != comparison.baseline
                    else None,
                }
                for variant in comparison.variants
            }
            for measure in MEASURES
        },
    }


def as_markdown(results: Results, code_version: str, plots: Sequence[str] = ()) -> str:
    """Return a page with the runs, their results, and how to read them."""
    comparison = results.comparison
    steps = comparison.runs[0].config.steps
    lines = [
        f"# {comparison.name}",
        "",
        f"{len(comparison.variants)} variants × {len(comparison.seeds)} seeds ({_listed(comparison.seeds)}), "
        f"{steps} steps each. Code: {code_version}."
        + (
            f" Each variant has its best value of {results.tuned.tuning.config.setting}, chosen on other seeds."
            if results.tuned is not None
            else ""
        ),
        "",
        *_markdown_table(_head(HEADLINES), _estimate_rows(results, HEADLINES)),
        "",
        f"Mean over seeds ± half the width of its {CONFIDENCE:.0%} interval (Student's t over seeds).",
        "",
    ]
    if comparison.others:
        lines += [
            f"## Differences from {comparison.baseline}, paired by seed",
            "",
            *_markdown_table(_head(HEADLINES), _difference_rows(results)),
            "",
            "`*`: the interval excludes 0. The page has "
            f"{len(comparison.others) * len(HEADLINES)} such intervals, without a correction for multiple comparisons.",
            "",
        ]
    lines += ["## Details", "", *_markdown_table(_head(DETAILS), _estimate_rows(results, DETAILS)), ""]
    if results.tuned is not None:
        seeds = _listed(results.tuned.tuning.config.seeds)
        lines += [
            "## Tuning",
            "",
            f"{tuning_title(results.tuned)}, mean over the tuning's seeds ({seeds}):",
            "",
        ]
        lines += [*_markdown_table(tuning_head(results.tuned), tuning_rows(results.tuned)), ""]
    lines += [f"![{plot}]({plot})\n" for plot in plots]
    lines += ["## Columns", ""]
    lines += [f"- **{measure.title}**: {measure.meaning}." for measure in MEASURES]
    lines += ["", *notes(results), ""]
    lines += ["## Commands of the single runs", "", "```bash"]
    tuning_runs = results.tuned.tuning.runs if results.tuned is not None else ()
    lines += [
        f"python launch.py train {shlex.join(run.arguments)}" for run in (*tuning_runs, *comparison.runs)
    ]
    return "\n".join([*lines, "```", ""])


def notes(results: Results) -> list[str]:
    """Return the remarks that a reader needs besides the numbers, one line each."""
    found = (
        [f"Not finished and therefore not included: {', '.join(results.missing)}."] if results.missing else []
    )
    found += tuning_notes(results.tuned) if results.tuned is not None else []
    found += [
        f"{', '.join(equal)} have the same gradient here (on-policy, one optimizer step per batch): any difference "
        "between them is due to chance."
        for equal in same_gradient(results.comparison)
    ]
    return found


def tuning_table(tuned: Tuned) -> Table:
    """Return the table of the tuning for the terminal."""
    return _rich_table(tuning_title(tuned), tuning_head(tuned), tuning_rows(tuned))


def tables(results: Results) -> list[Table]:
    """Return the tables of means, of differences and of details for the terminal."""
    comparison = results.comparison
    title = "mean ± 95 % interval (t, over seeds)"
    found = [_rich_table(title, _head(HEADLINES), _estimate_rows(results, HEADLINES))]
    if comparison.others:
        title = f"difference from {comparison.baseline}, paired by seed"
        found.append(_rich_table(title, _head(HEADLINES), _difference_rows(results)))
    found.append(_rich_table("details", _head(DETAILS), _estimate_rows(results, DETAILS)))
    return found


def shown(estimate: Estimate, measure: Measure, *, signed: bool = False) -> str:
    """Return text such as `39.0 ± 2.1`, or `39.0 (1 seed)` if a single seed gives no interval."""
    if not estimate.count:
        return "–"
    mean = f"{estimate.mean * measure.scale:{'+' if signed else ''}.{measure.decimals}f}"
    if estimate.half_width is None:
        return f"{mean} (1 seed)"
    mark = " *" if signed and estimate.excludes_zero else ""
    return f"{mean} ± {estimate.half_width * measure.scale:.{measure.decimals}f}{mark}"


def _head(measures: Sequence[Measure]) -> list[str]:
    return ["variant", *(measure.title for measure in measures)]


def _estimate_rows(results: Results, measures: Sequence[Measure]) -> list[list[str]]:
    return [
        [variant, *(shown(results.estimate(measure, variant), measure) for measure in measures)]
        for variant in results.comparison.variants
    ]


def _difference_rows(results: Results) -> list[list[str]]:
    return [
        [
            variant,
            *(shown(results.difference(measure, variant), measure, signed=True) for measure in HEADLINES),
        ]
        for variant in results.comparison.others
    ]


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *([*row] for row in rows)]
    ]


def _rich_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in head:
        table.add_column(column, justify="left" if column == "variant" else "right")
    for variant, *cells in rows:
        table.add_row(
            Text(variant, "cyan"), *(Text(cell, "bold" if cell.endswith("*") else "") for cell in cells)
        )
    return table


def _json(estimate: Estimate) -> dict[str, Any]:
    return {
        "mean": estimate.mean if math.isfinite(estimate.mean) else None,
        "half_width": estimate.half_width,
        "count": estimate.count,
    }


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)
