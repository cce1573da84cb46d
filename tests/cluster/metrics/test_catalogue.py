"""The catalogue has exactly the metrics that a run logs."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator

from cluster.metrics.catalogue import METRICS, SECTIONS
from tests import PROJECT

MADE_OF_PARTS = {  # f-strings in the controller and in the metrics of a batch
    *(f"time/{part}_s" for part in ("step", "rollout", "learn", "publish", "evaluate", "checkpoint")),
    "response_length/correct_mean",
    "response_length/incorrect_mean",
    "progress/step",
}


def literals() -> Iterator[str]:
    """Yield strings like `reward/mean` in the code that logs."""
    prefixes = tuple(f"{prefix}/" for section in SECTIONS for prefix in section.prefixes)
    for package in ("cluster", "learner"):
        for file in (PROJECT / package).rglob("*.py"):
            if {"tracking", "report", "compare", "renamed.py"} & set(file.relative_to(PROJECT).parts):
                continue  # these show or translate metrics that other modules log
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    name = node.value.partition("/")[2]
                    if node.value.startswith(prefixes) and name.isidentifier():
                        yield node.value


def test_the_catalogue_has_exactly_the_metrics_of_the_code() -> None:
    assert set(literals()) | MADE_OF_PARTS == set(METRICS)


def test_a_metric_belongs_to_one_section_by_its_prefix() -> None:
    assert all(
        metric.key.partition("/")[0] in section.prefixes for section in SECTIONS for metric in section.metrics
    )
    prefixes = Counter(prefix for section in SECTIONS for prefix in section.prefixes)
    assert set(prefixes.values()) == {1}


def test_charts_show_metrics_of_their_section_each_once() -> None:
    for section in SECTIONS:
        charted = [key for chart in section.charts for key in chart.keys]
        assert len(set(charted)) == len(charted)
        assert set(charted) <= {metric.key for metric in section.metrics}
