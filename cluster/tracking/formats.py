"""Numbers formatted for one line of text: counts, durations, percentages, sparklines and stacked bars. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.text import Text

SPARKS = "▁▂▃▄▅▆▇█"
# Part: (short name, glyph, style). The glyphs distinguish the parts without colors.
TIME_PARTS = {
    "rollout": ("rollout", "█", "cyan"),
    "learn": ("learn", "▓", "magenta"),
    "publish": ("publish", "▒", "yellow"),
    "evaluate": ("eval", "▚", "green"),
    "checkpoint": ("save", "▤", "blue"),
    "other": ("other", "░", "bright_black"),
}


def short(value: float) -> str:
    """Return a count in short form: `950`, `12.3k`, `4.56M`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def rounded(value: float) -> str:
    """Return a number with two significant digits, or with all digits before the point: `0.034`, `128`."""
    if not math.isfinite(value):
        return "?"
    return f"{value:.0f}" if abs(value) >= 9.95 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Return a duration: `4.2 s`, `45 s`, `12 min`, `3 h 05 min`."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def percent(fraction: float) -> str:
    """Return a fraction as a percentage: `62 %`, or `<1 %` for a small fraction above zero."""
    if not math.isfinite(fraction):
        return "? %"
    return "<1 %" if 0 < fraction < 0.005 else f"{100 * fraction:.0f} %"


def sparkline(values: Sequence[float], width: int) -> str:
    """Return a sparkline of at most `width` characters, each of which shows the mean of an equal part of the values.

    Values that are not finite leave a gap.
    """
    if not values or width < 1:
        return ""
    cells = min(width, len(values))
    means = []
    for cell in range(cells):
        part = values[cell * len(values) // cells : (cell + 1) * len(values) // cells]
        finite = [value for value in part if math.isfinite(value)]
        means.append(sum(finite) / len(finite) if finite else math.nan)
    known = [mean for mean in means if math.isfinite(mean)]
    if not known:
        return " " * cells
    low, high = min(known), max(known)
    span = high - low
    top = len(SPARKS) - 1
    heights = [(mean - low) / span if span else 0.0 for mean in means]
    return "".join(" " if math.isnan(height) else SPARKS[round(height * top)] for height in heights)


def time_parts(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds per part of a step; empty if nothing was measured.

    `time/step_s` consists of rollout, learn, publish and the rest ("other"). Evaluation and checkpoint are additional.
    Parts that overlap may sum to more than the step; then there is no "other".
    """
    parts = {name: metrics.get(f"time/{name}_s", 0.0) for name in TIME_PARTS}
    inside = sum(parts[name] for name in ("rollout", "learn", "publish"))
    parts["other"] = metrics.get("time/step_s", 0.0) - inside
    return {name: seconds for name, seconds in parts.items() if math.isfinite(seconds) and seconds > 0}


def stacked_bar(parts: Mapping[str, float], width: int) -> Text:
    """Return a line of exactly `width` characters, in which each part has its fraction, by cumulative rounding."""
    bar = Text()
    total, end, drawn = sum(parts.values()), 0.0, 0
    for name, seconds in parts.items():
        _, glyph, style = TIME_PARTS[name]
        end += seconds
        length = round(end / total * width) - drawn
        bar.append(glyph * length, style)
        drawn += length
    return bar


def time_legend(parts: Mapping[str, float]) -> Text:
    """Return a legend such as `█rollout 62% ▓learn 30%`, with the parts of at least 1 %, largest first."""
    legend = Text()
    total = sum(parts.values())
    for name, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        if seconds < 0.01 * total:
            continue
        short, glyph, style = TIME_PARTS[name]
        legend.append(" " if legend else "")
        legend.append(glyph, style)
        legend.append(f"{short} {100 * seconds / total:.0f}%")
    return legend
