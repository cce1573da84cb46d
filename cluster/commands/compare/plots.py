"""Plots of a comparison: means with intervals over the training steps, and the differences at the end."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from matplotlib.figure import Figure

from cluster.commands.compare.results import Results
from cluster.commands.report.figures import Band, Curve, bands_figure, differences_figure
from cluster.metrics.intervals import mean_estimate
from cluster.metrics.run_measures import HEADLINES, LENGTH, PASS_AT_1, REWARD, Row, curve

SMOOTHED_OVER = 10
"""The number of batches that one point of a batch curve averages. Single batches are too noisy to compare by eye."""


def figures(results: Results, rows: Mapping[str, Sequence[Row]]) -> Iterator[tuple[str, Figure]]:
    """Yield pairs of a file name without its suffix and a figure."""
    wanted = (
        ("pass_at_1", PASS_AT_1, "eval pass@1", 1),
        ("reward", REWARD, f"mean reward of a batch (means of {SMOOTHED_OVER} batches)", SMOOTHED_OVER),
        ("length", LENGTH, f"mean response length (means of {SMOOTHED_OVER} batches)", SMOOTHED_OVER),
    )
    for name, key, label, width in wanted:
        bands = {}
        for variant in results.comparison.variants:
            of_runs = [
                blocks(curve(rows[run.name], key), width)
                for run in results.comparison.of_variant(variant)
                if run.name in rows
            ]
            if any(of_runs):
                bands[variant] = (band(of_runs), of_runs)
        if bands:
            title = "mean over seeds with 95 % interval (t); thin lines: single seeds"
            yield name, bands_figure(title, "step", label, bands)
    if results.comparison.others:
        yield "differences", _differences(results)


def blocks(points: Curve, width: int) -> list[tuple[float, float]]:
    """Return the means of `width` successive points. An incomplete last block is dropped unless it is the only one."""
    whole = [points[start : start + width] for start in range(0, len(points) - width + 1, width)] or [points]
    return [
        (statistics.fmean(x for x, _ in block), statistics.fmean(y for _, y in block))
        for block in whole
        if block
    ]


def band(curves: Sequence[Curve]) -> Band:
    """Return the mean and the interval at each step that all curves have."""
    by_step = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*(set(points) for points in by_step)))
    estimates = [(step, mean_estimate([points[step] for points in by_step])) for step in steps]
    return Band([(step, estimate.mean, estimate.half_width) for step, estimate in estimates])


def _differences(results: Results) -> Figure:
    measures = HEADLINES[:2]
    baseline = results.comparison.baseline
    rows = []
    for measure in measures:
        for variant in results.comparison.others:
            estimate = results.difference(measure, variant)
            values = results.values[measure.key]
            seeds = values[variant].keys() & values[baseline].keys()
            half_width = None if estimate.half_width is None else estimate.half_width * measure.scale
            rows.append(
                (
                    f"{variant}: {measure.title}",
                    estimate.mean * measure.scale,
                    half_width,
                    [
                        (values[variant][seed] - values[baseline][seed]) * measure.scale
                        for seed in sorted(seeds)
                    ],
                )
            )
    return differences_figure(
        f"difference from {baseline}, paired by seed, with 95 % interval (t)", "percentage points", rows
    )
