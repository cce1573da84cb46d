"""Figures with matplotlib, drawn without a display: curves of runs, bands over seeds, differences with intervals.

A figure is returned as it is; `png` and `svg` make bytes of it. matplotlib's global state (pyplot) is never touched.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

Curve = Sequence[tuple[float, float]]
"""(x, y), x rising."""

# Okabe and Ito's colours, which people with any colour vision can tell apart, but for yellow: too light for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#882255", "#999933")
DASHES = ("-", "--", "-.", ":")
"""When the colours are used up, the second round is dashed, and so on."""
SMOOTHED_SHARE = 20
"""A running mean is over this part of a line's points."""
DOTTED_POINTS = 20
"""Lines of so few points show where these are."""
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "hpo-trainer",  # the same figure gives the same file
    "text.parse_math": False,  # a $ in a name is a $
}


@dataclass(frozen=True, slots=True)
class Band:
    """A line with an interval around it: (x, mean, half width or None)."""

    points: Sequence[tuple[float, float, float | None]]


@dataclass(frozen=True, slots=True)
class Line:
    """`colour` and `dashes` count from 0, and are the same for the same number in every figure."""

    points: Curve
    colour: int = 0
    dashes: int = 0


def lines_figure(
    lines: Sequence[Line], legend: Sequence[tuple[str, int, int]] = (), *, smooth: bool = True
) -> Figure:
    """A small chart over the step. Long noisy lines are drawn thinly, with their running mean on top.

    Args:
        lines: those without points are left out.
        legend: (label, colour, dashes); -1 is grey.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.3), layout="constrained")
        axes = figure.add_subplot(xlabel="step")
        for line in lines:
            points = thinned(line.points)
            colour, dashes = COLOURS[line.colour % len(COLOURS)], DASHES[line.dashes % len(DASHES)]
            shown = running_mean(points, len(points) // SMOOTHED_SHARE) if smooth else points
            if shown is not points:
                axes.plot(*_split(points), color=colour, linewidth=0.7, alpha=0.3)
            marker = "o" if len(points) <= DOTTED_POINTS else None
            axes.plot(
                *_split(shown), color=colour, linestyle=dashes, linewidth=1.5, marker=marker, markersize=3
            )
        if legend:
            handles = [
                Line2D(
                    [],
                    [],
                    color="#666666" if colour < 0 else COLOURS[colour % len(COLOURS)],
                    linestyle=DASHES[dashes],
                )
                for _, colour, dashes in legend
            ]
            figure.legend(
                handles, [label for label, *_ in legend], loc="outside upper left", ncols=len(legend)
            )
        return figure


def thinned(points: Curve, limit: int = 300) -> Curve:
    """At most about `limit` points: means of equally many successive ones."""
    width = -(-len(points) // limit)
    return points if width <= 1 else [_mean(points[at : at + width]) for at in range(0, len(points), width)]


def running_mean(points: Curve, width: int) -> Curve:
    """Each point the mean of the `width` around it, fewer at the ends. Below two there is nothing to do."""
    if width < 2:
        return points
    half = width // 2
    return [(points[at][0], _mean(points[max(0, at - half) : at + half + 1])[1]) for at in range(len(points))]


def _mean(points: Curve) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def bands_figure(
    title: str, x_label: str, y_label: str, bands: Mapping[str, tuple[Band, Sequence[Curve]]]
) -> Figure:
    """Per name a mean with its interval, and thinly the curves that it is the mean of."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 4.0), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=x_label, ylabel=y_label)
        for index, (name, (band, curves)) in enumerate(bands.items()):
            style = look(index, len(band.points))
            for curve in curves:
                axes.plot(*_split(curve), color=style["color"], linewidth=0.6, alpha=0.5)
            x, mean, _ = zip(*band.points, strict=True) if band.points else ((), (), ())
            axes.plot(x, mean, **style, label=name)
            around = [(x, mean, half) for x, mean, half in band.points if half is not None]
            if around:
                axes.fill_between(
                    [x for x, _, _ in around],
                    [mean - half for _, mean, half in around],
                    [mean + half for _, mean, half in around],
                    color=style["color"],
                    alpha=0.12,
                    linewidth=0,
                )
        axes.legend()
        return figure


def differences_figure(
    title: str, x_label: str, rows: Sequence[tuple[str, float, float | None, Sequence[float]]]
) -> Figure:
    """Per row a name, a mean with its interval, and the single values; 0 is where the baseline is."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 0.9 + 0.45 * len(rows)), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=x_label)
        axes.axvline(0, color="#444444", linewidth=1)
        for place, (_, mean, half_width, values) in enumerate(rows):
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(values, [place + 0.18] * len(values), "o", markersize=3, color=colour, alpha=0.5)
            axes.errorbar([mean], [place], xerr=half_width, fmt="o", color=colour, capsize=4, linewidth=2)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        return figure


def look(index: int, points: int) -> dict[str, Any]:
    """Colour, dashes and, for a lone point, a dot: the same for the same index in every figure."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
        "linewidth": 1.6,
        "marker": "o" if points == 1 else None,
    }


def png(figure: Figure, dots_per_inch: int = 144) -> bytes:
    stream = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(stream, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return stream.getvalue()


def svg(figure: Figure) -> bytes:
    stream = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def _split(curve: Curve) -> tuple[list[float], list[float]]:
    return [x for x, _ in curve], [y for _, y in curve]
