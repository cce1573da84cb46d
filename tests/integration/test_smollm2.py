"""A run with a widely used model: SmolLM2-135M-Instruct, from a Python package, with its chat template and no hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.configuration.loading import load_config
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking.jsonl import read_metrics
from tests import PROJECT


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_steps_of_a_real_pretrained_model(tmp_path: Path) -> None:
    config_file = PROJECT / "configs" / "countdown_smollm2.yaml"
    changes = ["steps=3", f"directory={tmp_path}", "evaluation.prompts=2", "tracking.wandb=disabled"]
    config = load_config(config_file, changes).config
    result = subprocess.run(
        [sys.executable, "launch.py", "train", str(config_file), *changes],
        cwd=PROJECT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    directory = RunDirectory(config.run_directory)
    rows = list(read_metrics(directory.metrics_file))
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(row["logprob_gap/probe_max"] < 1e-3 for row in rows), (
        "the engines must serve the updated tied embeddings"
    )
    assert "<|im_start|>user" in directory.transcript_file(3).read_text()
    assert (directory.final_model / "model.safetensors").exists()
