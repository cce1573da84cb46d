"""Tables for the terminal with the numbers of an evaluation. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from cluster.tracking.formats import percent


def report_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the numbers of `evaluation_report` for all prompts and, if the task has categories, for each of them."""
    tables = [_whole(report)]
    if report["categories"]:
        tables.append(_by_category(report["categories"]))
    return tables


def _whole(report: Mapping[str, Any]) -> Table:
    rates = dict(_rates(report))
    rows = {
        "model": report["model"],
        "evaluated on": f"{report['task']}, {report['split']}: {report['prompts']} prompts × "
        f"{report['responses_per_prompt']} responses",
        "sampled with": f"temperature {report['temperature']:g}, "
        + ("no seed" if report["seed"] is None else f"seed {report['seed']}"),
        **rates,
        "mean length": f"{report['response_length_mean']:.1f} tokens",
        "truncated": f"{percent(report['truncated_fraction'])} at {report['max_response_tokens']} tokens",
        "failed verdicts": str(report["failed_verdicts"]),
    }
    table = Table(show_header=False, caption=f"in parentheses: {_confidence(report)} confidence interval")
    for name, value in rows.items():
        table.add_row(Text(name, "cyan"), Text(value, "bold" if name in rates else ""))
    return table


def _by_category(categories: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return pass@1, and pass@k and maj@k for the largest k, of each category."""
    names = list(dict.fromkeys(name for found in categories.values() for name in _chosen(found)))
    table = Table("category", "prompts", *names)
    for category, found in categories.items():
        rates = dict(_rates(found))
        table.add_row(
            Text(category, "cyan"), str(found["prompts"]), *(Text(rates.get(name, "")) for name in names)
        )
    return table


def _chosen(found: Mapping[str, Any]) -> Iterator[str]:
    rates = [name for name, _ in _rates(found)]
    passed = [name for name in rates if name.startswith("pass")]
    yield from dict.fromkeys([passed[0], passed[-1]])
    yield from [name for name in rates if name.startswith("maj")][-1:]


def _rates(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield names with formatted rates, such as `pass@1` and `39.7 % (36.9 … 42.6)`."""
    for key, name in (("pass_at_k", "pass"), ("majority_at_k", "maj")):
        for k, rate in found[key].items():
            yield f"{name}@{k}", _rate(rate, found[f"{key}_interval"][k])


def _rate(rate: float | None, interval: tuple[float, float] | None) -> str:
    if rate is None:
        return "?"
    around = "" if interval is None else f" ({100 * interval[0]:.1f} … {100 * interval[1]:.1f})"
    return f"{100 * rate:.1f} %{around}"


def _confidence(report: Mapping[str, Any]) -> str:
    return f"{100 * report['intervals']['confidence']:.0f} %"
