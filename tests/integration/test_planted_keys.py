"""Secrets of the environment are in no file of a run (its directory, its logs, W&B's files and Ray's files), and not in
the environment of its actors and of the processes that these start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.core.config import ClusterConfig, RunConfig
from cluster.run_state.run_directory import RunDirectory
from cluster.runtime.connect import connect
from cluster.training.actors import ActorGraph, RayWorkerFactory, engine_options
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


def environments(actor: Any) -> tuple[set[str], set[str]]:
    """Return the names and values in the environment of an actor's process, and of a process that it starts."""
    own = {*os.environ, *os.environ.values()}
    child = [sys.executable, "-c", "import json, os; print(json.dumps([*os.environ, *os.environ.values()]))"]
    return own, {*json.loads(subprocess.check_output(child))}


async def test_real_actors_and_their_children_have_no_secret_of_the_node_or_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_node = {name: f"{key}-node" for name, key in PLANTED.items()} | {"NODE_API_KEY": "planted5" * 5}
    for name, key in (on_node | {"HARMLESS": "of the node"}).items():
        monkeypatch.setenv(name, key)
    connect(ClusterConfig())  # its node and its workers inherit the variables
    of_driver = PLANTED | {"DRIVER_API_KEY": "planted6" * 5}
    for name, key in of_driver.items():
        monkeypatch.setenv(name, key)
    config = RunConfig.model_validate(
        {"rollout": {"cpus_per_worker": 0.1}, "reward": {"cpus_per_worker": 0.1}}
    )
    directory = RunDirectory(tmp_path / "run")
    workers = RayWorkerFactory(config, engine_options(config, tmp_path), directory)
    try:
        async with (
            ActorGraph(config, directory, tmp_path).rewards() as rewards,
            workers.worker("rollout-0") as worker,
        ):
            for actor in (rewards._actors[0], worker):
                found = await actor.handle.__ray_call__.remote(environments)
                for environment in found:
                    assert "of the node" in environment, "the process must inherit the node's environment"
                    planted = {*on_node, *on_node.values(), *of_driver, *of_driver.values()}
                    assert not environment & planted
    finally:
        ray.shutdown()
