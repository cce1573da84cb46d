"""Draw the charts of a report. Each run has its own color; in a report about one run each metric has its own."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from cluster.commands.report.figures import Line, lines_figure
from cluster.commands.report.runs import Run
from cluster.metrics.catalogue import SECTIONS
from cluster.metrics.entries import Chart, Section

LEGEND_RUNS = 3
"""The number of runs up to which each chart has a legend. More runs are identified by the colors of the cards."""


@dataclass(frozen=True, slots=True)
class DrawnChart:
    """A chart with its figure."""

    chart: Chart
    figure: Figure
    file_stem: str


@dataclass(frozen=True, slots=True)
class DrawnSection:
    """A section with its drawn charts."""

    section: Section
    charts: Sequence[DrawnChart]
    constant: Mapping[str, float]
    """The metrics with the same value at all steps of all runs, which need no plot."""


def drawn_sections(runs: Sequence[Run]) -> Iterator[DrawnSection]:
    """Yield all sections for which a run has values."""
    for section in SECTIONS:
        charted = [key for chart in section.charts for key in chart.keys]
        constant = {key: value for key in charted if (value := constant_value(key, runs)) is not None}
        charts = [drawn for chart in section.charts if (drawn := draw(section, chart, runs, constant))]
        if charts or constant:
            yield DrawnSection(section, charts, constant)


def constant_value(key: str, runs: Sequence[Run]) -> float | None:
    """Return the value of a metric that is constant over all steps of all runs, or None for any other metric."""
    points = [value for run in runs for _, value in run.curve(key)]
    return points[0] if len(points) > len(runs) and len(set(points)) == 1 else None


def draw(
    section: Section, chart: Chart, runs: Sequence[Run], constant: Collection[str] = ()
) -> DrawnChart | None:
    """Draw a chart, or return None if no run has values for it or all of them are constant."""
    keys = [key for key in chart.keys if key not in constant and any(run.curve(key) for run in runs)]
    if not keys:
        return None
    one = len(runs) == 1
    lines = [
        Line(run.curve(key), color=of_key if one else of_run, dashes=of_key)
        for of_run, run in enumerate(runs)
        for of_key, key in enumerate(keys)
    ]
    names = (
        [(key.partition("/")[2], at if one else -1, at) for at, key in enumerate(keys)]
        if len(keys) > 1
        else []
    )
    if not one and not names and len(runs) <= LEGEND_RUNS:
        names = [(run.label, at, 0) for at, run in enumerate(runs)]
    stem = re.sub(r"[^a-z0-9]+", "_", f"{section.prefixes[0]} {chart.title}".lower()).strip("_")
    return DrawnChart(
        chart, lines_figure([line for line in lines if line.points], names, smooth=not chart.counted), stem
    )
