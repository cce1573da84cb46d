"""Texts and tables for the terminal and the page with the numbers of a plan. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from cluster.metrics.group_sizes import NEARLY_BEST
from cluster.tracking.formats import duration, percent, rounded

Report = Mapping[str, Any]
"""A report of `plan_report`."""

COLUMNS = {
    "group size": "rollout.responses_per_prompt",
    "informative": "fraction of groups with correct and incorrect responses",
    "α": "A-HPO's α in a large batch",
    "responses": "responses per informative group",
    "time": "time per informative group at the speed of this sample, without training",
    "signal/s": "signal per second at this speed",
    "per step": "informative groups per step",
}
"""The columns of the table of group sizes, and their meanings."""


def plan_tables(report: Report) -> list[Table]:
    """Return the tables of a report: the sample with its pass rate, and the group sizes if they were predicted."""
    facts = Table(show_header=False, caption=f"in parentheses: {_confidence(report)} intervals")
    for name, value in facts_of(report).items():
        facts.add_row(Text(name, "cyan"), Text(value))
    if not report["group_sizes"]:
        return [facts]
    sizes = Table(box=None, header_style="cyan", padding=(0, 2, 0, 0), pad_edge=False)
    for heading in COLUMNS:
        sizes.add_column(Text(heading))
    for cells, suggested in size_rows(report):
        sizes.add_row(*(Text(cell, "bold" if suggested else "") for cell in cells))
    return [facts, sizes]


def facts_of(report: Report) -> dict[str, str]:
    """Return what was sampled, and the distribution of pass rates."""
    sampling = report["sampling"]
    facts = {
        "model": report["model"],
        "sampled": f"{report['task']}, train: {report['prompts']} prompts × {report['responses_per_prompt']} responses",
        "correct": f"{report['correct']} responses, to {_solved(report)} of the prompts ({report['success']})",
        "speed": f"{sampling['responses_per_second']:.3g} responses/s, measured in this sample: "
        f"{duration(sampling['seconds'])} with {sampling['workers']} rollout workers",
        "truncated": percent(report["truncated_fraction"]),
    }
    if report["pass_rate"] is None:
        return facts
    distribution = report["distribution"]
    return facts | {
        "mean pass rate": _percent(report["pass_rate"]),
        "never solved": f"{_percent(distribution['unsolvable_fraction'])} of the prompts",
        "others": f"a Beta distribution with mean {_percent(distribution['mean_of_solvable'])} and correlation "
        f"{_number(distribution['correlation_of_solvable'])}",
    }


def size_rows(report: Report) -> Iterator[tuple[list[str], bool]]:
    """Yield the cells of each group size, and whether it is the suggested one. Sizes above the sampled one have a
    star."""
    suggested = report["suggestion"]["settings"]["rollout.responses_per_prompt"]
    for size in report["group_sizes"]:
        star = "*" if size["responses"] > report["responses_per_prompt"] else ""
        per_step = size["informative_groups_per_step"]
        yield (
            [
                f"{size['responses']}{star}",
                _percent(size["informative"]),
                _number(size["alpha"]),
                _number(size["responses_per_informative_group"]),
                _seconds(size["seconds_per_informative_group"]),
                _number(size["signal_per_second"]),
                "" if per_step is None else f"{_number(per_step)} of {size['prompts']}",
            ],
            size["responses"] == suggested,
        )


def closing_lines(report: Report) -> Iterator[str]:
    """Yield the lines after the tables: the suggestion, the settings and the notes."""
    if (suggestion := report["suggestion"]) is not None:
        if any(size["responses"] > report["responses_per_prompt"] for size in report["group_sizes"]):
            yield "* larger than the sampled groups: an extrapolation by the distribution"
        nearly, (low, high) = suggestion["nearly_best"], suggestion["best_between"]
        yield (
            f"most signal per second with {report['responses_per_step']} responses per step: group sizes "
            f"{', '.join(map(str, nearly))} (at least {100 * NEARLY_BEST:.0f} % of the best, which is between {low} "
            f"and {high}); the smallest of them has the most prompts per step"
        )
        yield f"settings{' (as configured)' if suggestion['is_configured'] else ''}: {' '.join(setting_lines(report))}"
    for note in report["notes"]:
        yield f"note: {note}"


def setting_lines(report: Report) -> list[str]:
    """Return the suggested settings, as the command line takes them."""
    return [f"{key}={value}" for key, value in report["suggestion"]["settings"].items()]


def _solved(report: Report) -> int:
    unsolved: int = report["histogram"][0]
    prompts: int = report["prompts"]
    return prompts - unsolved


def _confidence(report: Report) -> str:
    return f"{100 * report['intervals']['confidence']:.0f} %"


def _percent(quantity: Mapping[str, float]) -> str:
    estimate, low, high = (rounded(100 * quantity[key]) for key in ("estimate", "low", "high"))
    return f"{estimate} % ({low} … {high})"


def _number(quantity: Mapping[str, float], unit: str = "") -> str:
    return f"{rounded(quantity['estimate'])}{unit} ({rounded(quantity['low'])} … {rounded(quantity['high'])})"


def _seconds(quantity: Mapping[str, float]) -> str:
    if quantity["high"] < 100:
        return _number(quantity, " s")
    return f"{duration(quantity['estimate'])} ({duration(quantity['low'])} … {duration(quantity['high'])})"
