"""A plan predicts what the first steps of a real run of the demonstration measure."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

from cluster.configuration.loading import load_config
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking.jsonl import read_metrics
from tests import PROJECT

DEMO = PROJECT / "configs" / "demo.yaml"
STEPS = 12


def launch(command: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "launch.py", command, str(DEMO), *arguments],
        cwd=PROJECT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_of_the_starter_has_the_predicted_fraction_of_informative_groups(tmp_path: Path) -> None:
    """The learning rate is too small to change the policy, so that all steps measure the model of the plan."""
    changes = [f"directory={tmp_path}", "tracking.wandb=disabled"]
    plan = json.loads(launch("plan", *changes, "--prompts", "256", "--json"))
    config = load_config(DEMO, changes).config
    run = RunDirectory(config.run_directory)
    assert not run.path.exists(), "a plan is no run"
    written = {path.name for path in run.plan.path.iterdir()}
    assert written == {"plan.json", "plan.html", "logs"} | {
        f"evaluation.{suffix}" for suffix in ("json", "jsonl", "html")
    }
    assert plan["sampling"]["workers"] == config.rollout.workers
    assert plan["works"] == "yes"

    sizes = {size["responses"]: size["informative"] for size in plan["group_sizes"]}
    predicted = sizes[config.rollout.responses_per_prompt]
    launch("train", *changes, f"steps={STEPS}", "learner.learning_rate=1e-9", "learner.warmup_steps=0")
    rows = list(read_metrics(run.metrics_file))
    measured = fmean(1 - row["reward/zero_variance_fraction"] for row in rows[1:])
    error = math.sqrt(measured * (1 - measured) / (STEPS * config.rollout.prompts_per_step))
    assert len(rows) == STEPS + 1
    assert predicted["low"] - 2 * error < measured < predicted["high"] + 2 * error
    assert predicted["high"] - predicted["low"] < 0.15, "otherwise the prediction could not fail"
