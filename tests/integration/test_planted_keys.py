"""Secrets of the environment are in no file of a run: its directory, its logs, W&B's files and Ray's files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster.run_state.run_directory import RunDirectory
from tests import PROJECT
from tests.simulated import simulation

PLANTED = {
    "WANDB_API_KEY": "planted0" * 5,
    "HF_TOKEN": "hf_planted1planted1",
    "MY_SECRET": "planted2planted2",
}


def test_a_run_writes_no_secret_to_its_files(tmp_path: Path) -> None:
    run = simulation(tmp_path, steps=2, workers=1)
    config = run.config.model_copy(
        update={"tracking": run.config.tracking.model_copy(update={"wandb": "offline"})}
    )
    specification = {"config": config.model_dump(mode="json"), "faults": str(run.faults), "address": None}
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True) as ray_files:
        subprocess.run(
            [sys.executable, "-m", "tests.simulated", json.dumps(specification)],
            cwd=PROJECT,
            env=os.environ | PLANTED | {"RAY_TMPDIR": ray_files},
            check=True,
            timeout=200,
        )
        directory = RunDirectory(config.run_directory)
        assert directory.metrics_file.exists()
        assert list(directory.wandb.rglob("*.wandb")), "W&B must have written its file"
        files = [
            file for folder in (tmp_path, Path(ray_files)) for file in folder.rglob("*") if file.is_file()
        ]
        assert any("raylet" in file.name for file in files), "the files must include Ray's logs"
        for file in files:
            content = file.read_bytes()
            for name, key in PLANTED.items():
                assert key.encode() not in content, f"{name} is in {file}"
