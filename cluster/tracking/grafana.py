"""`grafana_dashboard.json`, made from the catalogue: a row per section, a panel per chart. Pure.

`make docs` writes it anew; a test says when it is not current.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.metrics.catalogue import METRICS, SECTIONS, Chart, prometheus_name

FILE = Path(__file__).with_name("grafana_dashboard.json")
COLUMNS, WIDTH, HEIGHT = 3, 8, 7
"""Grafana's page is 24 units wide."""
UNITS = {"share": "percentunit", "s": "s", "tokens/s": "cps"}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard_text() -> str:
    dashboard = {
        "title": "hpo-trainer",
        "uid": "hpo-trainer",
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "data source"},
                {
                    "name": "run",
                    "type": "query",
                    "datasource": SOURCE,
                    "query": f"label_values({prometheus_name('progress/step')}, run)",
                    "refresh": 2,
                    "multi": True,
                    "includeAll": True,
                },
            ]
        },
        "panels": list(_panels()),
    }
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


def _panels() -> Iterator[dict[str, Any]]:
    top = number = 0
    for section in SECTIONS:
        number += 1
        place = {"x": 0, "y": top, "w": 24, "h": 1}
        yield {
            "id": number,
            "type": "row",
            "title": section.title,
            "collapsed": False,
            "gridPos": place,
            "panels": [],
        }
        top += 1
        for index, chart in enumerate(section.charts):
            number += 1
            place = {
                "x": index % COLUMNS * WIDTH,
                "y": top + index // COLUMNS * HEIGHT,
                "w": WIDTH,
                "h": HEIGHT,
            }
            yield {"id": number, "gridPos": place, **_panel(chart)}
        top += -(-len(section.charts) // COLUMNS) * HEIGHT


def _panel(chart: Chart) -> dict[str, Any]:
    units = {METRICS[key].unit for key in chart.keys}
    one = len(chart.keys) == 1
    return {
        "type": "timeseries",
        "title": chart.title,
        "description": "\n\n".join(f"{key}: {METRICS[key].meaning}" for key in chart.keys),
        "datasource": SOURCE,
        "fieldConfig": {
            "defaults": {"unit": UNITS.get(units.pop(), "short") if len(units) == 1 else "short"}
        },
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "expr": f'{prometheus_name(key)}{{run=~"$run"}}',
                "legendFormat": "{{run}}" if one else f"{{{{run}}}} {key.partition('/')[2]}",
                "datasource": SOURCE,
            }
            for index, key in enumerate(chart.keys)
        ],
    }
