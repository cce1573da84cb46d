"""The metrics of a run are available at Ray's Prometheus endpoint, after the few seconds that Ray's agent needs."""

from __future__ import annotations

import re
import time
import urllib.request

import pytest
import ray

from cluster.tracking.prometheus import RayMetrics, prometheus_name


@pytest.mark.slow
def test_the_endpoint_has_the_gauges_with_the_name_of_the_run(local_ray: None) -> None:
    gauges = RayMetrics("my-run")
    gauges.log(3, {"reward/mean": 0.25, "objective/loss": float("nan"), "not/known": 1.0})
    port = ray.nodes()[0]["MetricsExportPort"]
    deadline = time.monotonic() + 120
    found: dict[str, float] = {}
    while len(found) < 2:
        assert time.monotonic() < deadline, f"the endpoint has only {found}"
        time.sleep(1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            page = answer.read().decode()
        found = {
            name: float(value)
            for name, value in re.findall(r'^(ray_hpo_\w+)\{.*run="my-run".*\} (\S+)$', page, re.M)
        }
    assert found == {prometheus_name("reward/mean"): 0.25, prometheus_name("progress/step"): 3.0}
