"""A run's numbers at Ray's Prometheus endpoint: one gauge per metric of the catalogue, labelled with the run's name.

Prometheus scrapes every node of a Ray cluster; `launch.py` only sets the gauges. `grafana_dashboard.json` shows them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ray.util.metrics import Gauge

from cluster.metrics.catalogue import METRICS, gauge_description, gauge_name


class RayMetrics:
    """Sets the gauges of one run. Make it when Ray is started."""

    def __init__(self, run_name: str) -> None:
        self._gauges: dict[str, Gauge] = {}
        self._labels = {"run": run_name}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """What is not finite keeps the value before: a gauge has no word for it."""
        for key, value in {"progress/step": float(step), **metrics}.items():
            if key in METRICS and math.isfinite(value):
                self._gauge(key).set(value)

    def _gauge(self, key: str) -> Gauge:
        if key not in self._gauges:
            gauge = Gauge(gauge_name(key), description=gauge_description(key), tag_keys=("run",))
            gauge.set_default_tags(self._labels)
            self._gauges[key] = gauge
        return self._gauges[key]
