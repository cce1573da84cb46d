"""The page about a plan: one HTML file without scripts and external resources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from cluster.commands.plan.figures import histogram_figure, sizes_figure
from cluster.commands.plan.tables import COLUMNS, closing_lines, facts_of, size_rows
from cluster.commands.report.figures import data_url
from cluster.tracking.pages import environment


def plan_page(report: Mapping[str, Any], version: str) -> str:
    """Return the HTML text of the page about a report of `plan_report`.

    Args:
        report: The numbers.
        version: The version of the code.
    """
    return (
        environment("cluster.commands.plan")
        .get_template("plan.html.j2")
        .render(
            title=f"Plan for {report['task']}",
            made=f"{datetime.now():%Y-%m-%d %H:%M}, {version}",
            works=report["works"],
            reason=report["reason"],
            facts=facts_of(report),
            columns=COLUMNS,
            rows=list(size_rows(report)) if report["group_sizes"] else [],
            lines=list(closing_lines(report)),
            charts=[(title, data_url(figure)) for title, figure in _figures(report)],
            intervals=report["intervals"],
        )
    )


def _figures(report: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the titles and figures of the charts."""
    yield "prompts by correct responses", histogram_figure(report["histogram"], report["expected_histogram"])
    sizes = report["group_sizes"]
    if not sizes:
        return
    chosen = report["suggestion"]["settings"]["rollout.responses_per_prompt"]
    for key, title in (
        ("informative", "fraction of informative groups"),
        ("signal_per_second", "signal per second"),
        ("alpha", "α of A-HPO"),
    ):
        yield title, sizes_figure(title, {size["responses"]: size[key] for size in sizes}, chosen)
