"""The entries of the catalogue of metrics: a metric, a chart and a section. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["", "fraction", "tokens", "s", "tokens/s", "versions", "processes", "prompts"]
Summary = Literal["last", "min", "max", "mean"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that a run logs."""

    key: str
    meaning: str
    unit: Unit = ""
    summary: Summary | None = None
    """The statistic that summarizes the metric over a whole run; None if no summary is shown."""


@dataclass(frozen=True, slots=True)
class Chart:
    """Metrics that are drawn in one chart, over the step."""

    title: str
    keys: tuple[str, ...]
    counted: bool = False
    """True for counts and settings, which are drawn without smoothing over steps."""


@dataclass(frozen=True, slots=True)
class Section:
    """Metrics and charts that answer one question."""

    title: str
    question: str
    prefixes: tuple[str, ...]
    """The parts of the metrics' keys before the slash."""
    metrics: tuple[Metric, ...]
    charts: tuple[Chart, ...]
