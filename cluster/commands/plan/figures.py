"""The figures of a plan: the prompts by their number of correct responses, and quantities over the group size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from cluster.commands.report.figures import COLORS, STYLE


def histogram_figure(histogram: Sequence[int], expected: Sequence[float] | None) -> Figure:
    """Draw the number of prompts with 0, 1, … correct responses, and the numbers that the distribution predicts."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.6), layout="constrained")
        axes = figure.add_subplot(xlabel="correct responses to a prompt", ylabel="prompts")
        axes.bar(range(len(histogram)), histogram, color=COLORS[4], label="sampled")
        if expected is not None:
            marker = "o" if len(expected) <= 40 else None
            axes.plot(
                range(len(expected)), expected, color=COLORS[1], marker=marker, markersize=3, label="fitted"
            )
            axes.legend()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        return figure


def sizes_figure(y_label: str, quantities: Mapping[int, Mapping[str, float]], chosen: int) -> Figure:
    """Draw a quantity with its interval over the group size.

    Args:
        y_label: The name of the quantity.
        quantities: The quantity by group size, as `estimate`, `low` and `high`.
        chosen: The group size to mark.
    """
    sizes = list(quantities)
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.6), layout="constrained")
        axes = figure.add_subplot(xlabel="group size", ylabel=y_label, xscale="log")
        axes.axvline(chosen, color="#888888", linewidth=1, linestyle="--")
        axes.plot(
            sizes, [quantities[size]["estimate"] for size in sizes], color=COLORS[0], marker="o", markersize=3
        )
        axes.fill_between(
            sizes,
            [quantities[size]["low"] for size in sizes],
            [quantities[size]["high"] for size in sizes],
            color=COLORS[0],
            alpha=0.15,
            linewidth=0,
        )
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=0)
        return figure
