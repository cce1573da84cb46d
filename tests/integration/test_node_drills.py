"""Failure drills in a cluster of several raylets on this machine, with simulated engines: a lost node costs only its
workers, and a full object store or a killed controller costs nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.cluster_utils import Cluster

from cluster.core.config import ClusterConfig, RunConfig
from cluster.core.types import ScoringRequest
from cluster.run_state.run_directory import RunDirectory
from cluster.runtime.connect import connect
from cluster.runtime.placement import PlacementError, Reservation
from cluster.tracking import read_metrics
from cluster.training.actors import ActorGraph
from tests import PROJECT
from tests.builders import all_verdicts
from tests.simulated import Simulation, assert_complete, simulation

STORE_BYTES = 80 * 2**20
ROLLOUT_POOL, LEARNER_POOL = {"pool": "rollout"}, {"pool": "learner"}
pytestmark = [pytest.mark.timeout(240), pytest.mark.drill]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start a head for the controller and the learner, and a node for two workers.

    Their files are not in the folder where the address `auto` would find them.
    """
    with (
        # A process of a node that is ending may still write its log.
        tempfile.TemporaryDirectory(prefix="nodes-", dir="/tmp", ignore_cleanup_errors=True) as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", directory)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "object_store_memory": STORE_BYTES,
                "labels": LEARNER_POOL,
                "_system_config": {  # a lost node is detected after 12 s, a little sooner than by default
                    "health_check_initial_delay_ms": 1000,
                    "health_check_period_ms": 1000,
                    "health_check_failure_threshold": 12,
                },
            },
        )
        add_node(cluster)
        connect(ClusterConfig(address=cluster.address))
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def add_node(cluster: Cluster) -> Any:
    return cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES, labels=ROLLOUT_POOL)


def on_nodes(run: Simulation) -> Simulation:
    """Place two workers on each node of the rollout pool."""
    where = ClusterConfig(
        node_labels={"rollout": ROLLOUT_POOL, "learner": LEARNER_POOL}, placement_timeout_s=5
    )
    rollout = run.config.rollout.model_copy(update={"cpus_per_worker": 1.0})
    run.config = run.config.model_copy(update={"cluster": where, "rollout": rollout})
    return run


def spilled_bytes(cluster: Cluster) -> int:
    directory = Path(cluster.head_node.get_session_dir_path())
    return sum(file.stat().st_size for file in directory.glob("ray_spilled_objects*/*"))


async def test_a_node_is_lost_and_its_workers_are_placed_elsewhere(cluster: Cluster, tmp_path: Path) -> None:
    run = on_nodes(simulation(tmp_path, steps=80, workers=3, max_staleness=1))
    run.learner.learn_s = 0.3
    run.hold()
    first, second = next(iter(cluster.worker_nodes)), add_node(cluster)
    async with run.run() as (fleet, training), asyncio.timeout(200):
        await fleet.wait_until(lambda: fleet.state.started_workers == 3)
        raylet = second.all_processes["raylet"][0].process
        lost = {name for name, process in fleet.process_ids.items() if runs_under(process, raylet.pid)}
        assert 0 < len(lost) < 3, "workers are on both nodes"
        os.kill(raylet.pid, signal.SIGKILL)
        await fleet.wait_until(lambda: all(fleet.state[name].incarnation for name in lost))
        await until_demanded(cluster, {"CPU": 1.0})
        third = add_node(cluster)  # as an autoscaler would add it
        await fleet.wait_until(lambda: fleet.state.started_workers == 3)
        left = {first.all_processes["raylet"][0].process.pid, third.all_processes["raylet"][0].process.pid}
        for process in fleet.process_ids.values():
            assert any(runs_under(process, pid) for pid in left)
        run.learner.learn_s = 0.0
        run.release()
        await training
    assert fleet.state.restarts == len(lost)
    assert_complete(run.config)


@pytest.mark.slow
async def test_the_node_of_the_reward_actor_is_lost_and_its_verdicts_come_from_another(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The actor is in the middle of many verdicts. Ray places it elsewhere, and no response loses its verdict."""
    (tmp_path / "my_rewards.py").write_text(
        "import time\ndef score(problem, response):\n    time.sleep(0.1)\n    return response == problem\n"
    )
    monkeypatch.chdir(tmp_path)
    pool = {"pool": "reward"}
    config = RunConfig.model_validate(
        {
            "task": {"name": "python", "options": {"function": "my_rewards:score"}},
            "reward": {"cpus_per_worker": 0.5, "processes_per_worker": 2},
            "cluster": {"node_labels": {"reward": pool}},
        }
    )

    def add_reward_node() -> Any:
        return cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, labels=pool)

    nodes = [add_reward_node(), add_reward_node()]
    graph = ActorGraph(config, RunDirectory(tmp_path / "run"), tmp_path / "model")
    async with graph.rewards() as rewards, asyncio.timeout(200):

        async def all_correct(group: int) -> bool:
            requests = [ScoringRequest(f"{group}", f"{group}", "stop") for _ in range(16)]
            return [verdict.outcome for verdict in await all_verdicts(rewards, requests)] == ["correct"] * 16

        await all_correct(0)
        groups = [asyncio.create_task(all_correct(group)) for group in range(24)]
        await asyncio.sleep(1)
        raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in nodes]
        (lost,) = (raylet for raylet in raylets if hosts(raylet, "RewardActor"))
        for process in (lost, *lost.children(recursive=True)):  # at once, as a power failure would
            process.kill()
        assert all(await asyncio.gather(*groups))


def hosts(raylet: psutil.Process, actor: str) -> bool:
    return any(actor in " ".join(process.cmdline()) for process in raylet.children(recursive=True))


async def until_demanded(cluster: Cluster, bundle: dict[str, float]) -> None:
    """Wait until Ray's autoscaler, if there were one, would see a demand for this bundle."""
    while True:
        demands = get_cluster_status(cluster.address).resource_demands.placement_group_demand
        if any(bundle in [each.bundle for each in demand.bundles_by_count] for demand in demands):
            return
        await asyncio.sleep(0.2)


def runs_under(process_id: int, raylet_id: int) -> bool:
    return raylet_id in [parent.pid for parent in psutil.Process(process_id).parents()]


@pytest.mark.slow
async def test_weights_pass_through_an_object_store_that_is_nearly_full(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Other objects take 60 of 80 MiB, so two versions of 12 MiB do not fit; 20 versions are published."""
    taken = ray.put(np.zeros(60 * 2**20, dtype=np.uint8))
    run = simulation(tmp_path, steps=20, workers=2, max_staleness=1)
    run.learner.weight_bytes = 12 * 2**20
    await run.finish()
    assert_complete(run.config)
    assert len(await taken) == 60 * 2**20
    assert spilled_bytes(cluster) <= (60 + 3 * 12) * 2**20, "unused versions must be freed"


@pytest.mark.slow
def test_the_controller_is_killed_and_the_cluster_survives(cluster: Cluster, tmp_path: Path) -> None:
    run = simulation(tmp_path, steps=60, max_staleness=1)
    config = run.config.model_copy(
        update={"checkpoint": run.config.checkpoint.model_copy(update={"every_steps": 5})}
    )
    specification = {
        "config": config.model_dump(mode="json"), "faults": str(run.faults), "address": cluster.address
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.simulated", json.dumps(specification)]
    metrics = RunDirectory(config.run_directory).metrics_file
    first = subprocess.Popen(command, cwd=PROJECT)
    deadline = time.monotonic() + 100
    while not (metrics.exists() and any(row["step"] == 13 for row in read_metrics(metrics))):
        assert first.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    subprocess.run(command, cwd=PROJECT, check=True, timeout=120)
    assert_complete(config)


async def test_nodes_without_the_labels_are_not_used(cluster: Cluster) -> None:
    with pytest.raises(
        PlacementError, match=r"\(1 CPU, 0 GPU\) on nodes with the labels pool=other within 1 s"
    ):
        async with Reservation("rollout-0", [{"CPU": 1}], 1, {"pool": "other"}):
            pass
