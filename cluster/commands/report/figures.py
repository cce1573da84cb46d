"""Draw figures with matplotlib, without a display: curves of runs, bands over seeds, differences with intervals.

`png` and `svg` render a figure. matplotlib's global state (pyplot) is never used.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

Curve = Sequence[tuple[float, float]]
"""Points (x, y) with ascending x."""

# Okabe and Ito's palette, distinguishable with any color vision, without yellow, which is too light for a line.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#882255", "#999933")
DASHES = ("-", "--", "-.", ":")
"""The line styles. When all colors are used, the second round of lines is dashed, and so on."""
SMOOTHED_FRACTION = 20
"""The running mean covers one part in this many of a line's points."""
DOTTED_POINTS = 20
"""The number of points up to which a line shows markers."""
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
    """A line of points (x, mean, half width or None) with an interval around it."""

    points: Sequence[tuple[float, float, float | None]]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart. The numbers `color` and `dashes`, from 0, mean the same in every figure."""

    points: Curve
    color: int = 0
    dashes: int = 0


def lines_figure(
    lines: Sequence[Line], legend: Sequence[tuple[str, int, int]] = (), *, smooth: bool = True
) -> Figure:
    """Draw a small chart over the step. Long noisy lines are drawn thin, with their running mean on top.

    Args:
        lines: The lines, each with at least one point.
        legend: The entries (label, color, dashes). Color -1 is gray.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.3), layout="constrained")
        axes = figure.add_subplot(xlabel="step")
        for line in lines:
            points = thinned(line.points)
            color, dashes = COLORS[line.color % len(COLORS)], DASHES[line.dashes % len(DASHES)]
            shown = running_mean(points, len(points) // SMOOTHED_FRACTION) if smooth else points
            if shown is not points:
                axes.plot(*_split(points), color=color, linewidth=0.7, alpha=0.3)
            marker = "o" if len(points) <= DOTTED_POINTS else None
            axes.plot(
                *_split(shown), color=color, linestyle=dashes, linewidth=1.5, marker=marker, markersize=3
            )
        if legend:
            handles = [
                Line2D(
                    [],
                    [],
                    color="#666666" if color < 0 else COLORS[color % len(COLORS)],
                    linestyle=DASHES[dashes],
                )
                for _, color, dashes in legend
            ]
            figure.legend(
                handles, [label for label, *_ in legend], loc="outside upper left", ncols=len(legend)
            )
        return figure


def thinned(points: Curve, limit: int = 300) -> Curve:
    """Return at most about `limit` points: the means of equally many successive points."""
    width = -(-len(points) // limit)
    return points if width <= 1 else [_mean(points[at : at + width]) for at in range(0, len(points), width)]


def running_mean(points: Curve, width: int) -> Curve:
    """Return the centered running mean over `width` points, fewer at the ends. A width below 2 changes nothing."""
    if width < 2:
        return points
    half = width // 2
    return [(points[at][0], _mean(points[max(0, at - half) : at + half + 1])[1]) for at in range(len(points))]


def _mean(points: Curve) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def bands_figure(
    title: str, x_label: str, y_label: str, bands: Mapping[str, tuple[Band, Sequence[Curve]]]
) -> Figure:
    """Draw for each name a mean with its interval, and as thin lines the curves that it averages."""
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
    """Draw for each row a mean with its interval and the single values. The baseline is at 0.

    Args:
        rows: The rows (name, mean, half width or None, values).
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 0.9 + 0.45 * len(rows)), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=x_label)
        axes.axvline(0, color="#444444", linewidth=1)
        for position, (_, mean, half_width, values) in enumerate(rows):
            color = COLORS[position % len(COLORS)]
            axes.plot(values, [position + 0.18] * len(values), "o", markersize=3, color=color, alpha=0.5)
            axes.errorbar([mean], [position], xerr=half_width, fmt="o", color=color, capsize=4, linewidth=2)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        return figure


def look(index: int, points: int) -> dict[str, Any]:
    """Return the color, the dashes and, for a single point, a marker. The same index looks the same in every figure."""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[index // len(COLORS) % len(DASHES)],
        "linewidth": 1.6,
        "marker": "o" if points == 1 else None,
    }


def png(figure: Figure, dots_per_inch: int = 144) -> bytes:
    """Render a figure as PNG."""
    stream = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(stream, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return stream.getvalue()


def svg(figure: Figure) -> bytes:
    """Render a figure as SVG."""
    stream = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def data_url(figure: Figure) -> str:
    """Return a figure as the address of an image, which contains the image itself."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg(figure)).decode()


def _split(curve: Curve) -> tuple[list[float], list[float]]:
    return [x for x, _ in curve], [y for _, y in curve]
