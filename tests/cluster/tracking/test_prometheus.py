"""The Grafana dashboard and the gauges are generated from the catalogue and name the same metrics."""

from __future__ import annotations

import json
import re

from cluster.metrics.catalogue import CHARTED, METRICS, SECTIONS
from cluster.tracking.prometheus import DASHBOARD_FILE, RayMetrics, dashboard_text, prometheus_name

DASHBOARD = json.loads(DASHBOARD_FILE.read_text(encoding="utf-8"))
EXPORTED = {prometheus_name(key) for key in METRICS}


def test_the_file_is_up_to_date() -> None:
    assert DASHBOARD_FILE.read_text(encoding="utf-8") == dashboard_text(), "run: make docs"


def test_it_queries_exactly_the_charted_metrics() -> None:
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    queries += [variable["query"] for variable in DASHBOARD["templating"]["list"]]
    named = {name for query in queries for name in re.findall(r"ray_\w+", query)}
    assert named <= EXPORTED
    assert named == {prometheus_name(key) for key in CHARTED | {"progress/step"}}
    assert len(EXPORTED) == len(METRICS), "names are unique"
    assert all(re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", name) for name in EXPORTED)


def test_panels_do_not_overlap_and_fit_the_page() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        position = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(position["x"], position["x"] + position["w"])
            for y in range(position["y"], position["y"] + position["h"])
        }
        assert position["x"] + position["w"] <= 24
        assert not cells & taken
        taken |= cells
    assert sum(panel["type"] == "row" for panel in DASHBOARD["panels"]) == len(SECTIONS)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_ray_accepts_the_names_and_descriptions_of_all_gauges() -> None:
    """Ray makes gauges without a connection, and refuses names that are not ASCII."""
    RayMetrics("run").log(1, dict.fromkeys(METRICS, 0.5))
