"""The benchmarks still run. What they measure is not looked at: see benchmarks/results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


def run(script: str, *options: str) -> str:
    process = subprocess.run(
        [sys.executable, PROJECT / "benchmarks" / script, *options], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("script", ["learner_speed.py", "logprob_memory.py", "telelogs_problems.py"])
def test_small_sizes_give_a_report(script: str, tmp_path: Path) -> None:
    run(script, "--smoke", "--output", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"command", "commit", "machine", "versions"} < report.keys()
    for case in report.get("cases", {}).values():
        assert all(seconds > 0 for seconds in case["median_s"].values())
        assert all(ratio > 0 for ratio in case["ratios"].values())
    for kind in report.get("kinds", {}).values():
        assert kind["solved_share"] >= 0.9
    if "ways" in report:
        assert report["ways"].keys() == {"chunked", "whole"}


def test_results_that_are_kept_name_what_they_were_measured_with() -> None:
    for file in (PROJECT / "benchmarks" / "results").glob("*.json"):
        report = json.loads(file.read_text())
        assert report["command"].startswith(f"python benchmarks/{file.stem}.py"), file
        assert "--smoke" not in report["command"], file
