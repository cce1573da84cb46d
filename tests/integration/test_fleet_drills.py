"""Failure drills with simulated engines: the processes of rollout workers are killed, stopped and drained.

In each drill the run completes, every admitted prompt is trained on or dropped exactly once, no sample is staler than
allowed, and sampler and learner agree. `make drill` runs these drills and those with real engines
(test_engine_drills.py).
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import ray

from cluster.core.types import TrainingBatch
from cluster.run_state.run_directory import RunDirectory
from cluster.training.control import RunIsLiveError, listening
from rollout.fleet.fleet import RolloutFleet
from rollout.fleet.state import WorkerState
from tests import PROJECT
from tests.simulated import assert_complete, simulation

pytestmark = [pytest.mark.timeout(240), pytest.mark.drill, pytest.mark.usefixtures("local_ray")]


UP = {WorkerState.STALE, WorkerState.HEALTHY}


async def until(fleet: RolloutFleet, states: set[WorkerState], count: int) -> None:
    async with asyncio.timeout(150):
        await fleet.wait_until(lambda: fleet.state.count(states) >= count)


def kill(process_id: int) -> bool:
    """Kill a process. Returns False if it was killed before and the fleet has not noticed yet."""
    try:
        os.kill(process_id, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


async def test_random_workers_are_killed_repeatedly(tmp_path: Path) -> None:
    run, order = simulation(tmp_path, steps=30, max_staleness=1), random.Random(0)
    kills = 0
    async with run.run() as (fleet, training):
        while not training.done():
            await asyncio.sleep(0.7)
            if fleet.process_ids:
                kills += kill(order.choice(sorted(fleet.process_ids.values())))
        await training
    assert kills >= 3
    assert fleet.state.restarts >= 3
    assert_complete(run.config)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_fifty_kills(tmp_path: Path) -> None:
    """A random running worker is killed every two seconds."""
    run = simulation(tmp_path, steps=400, workers=4, max_staleness=1, max_consecutive_failures=10)
    order, kills = random.Random(0), 0
    run.learner.learn_s = 1.0
    run.hold()
    async with run.run() as (fleet, training):
        while kills < 50:
            await asyncio.sleep(2)
            assert not training.done(), training
            if fleet.process_ids:
                kills += kill(order.choice(sorted(fleet.process_ids.values())))
        run.learner.learn_s = 0.0
        run.release()
        await training
    assert fleet.state.restarts >= 50
    assert_complete(run.config)


async def test_a_wedged_worker_is_suspected_and_replaced(tmp_path: Path) -> None:
    # A worker may be stopped in the middle of an update, to which the other limit applies.
    run = simulation(tmp_path, steps=40, silence_timeout_s=4.0, update_timeout_s=4.0)
    run.hold()
    async with run.run() as (fleet, training):
        await until(fleet, UP, 3)
        name, process = next(iter(fleet.process_ids.items()))
        os.kill(process, signal.SIGSTOP)
        await until(fleet, {WorkerState.SUSPECT}, 1)
        assert fleet.state[name].state is WorkerState.SUSPECT
        async with asyncio.timeout(150):
            await fleet.wait_until(lambda: fleet.state[name].incarnation == 1)
        run.release()
        await training
    said = rf"{name} was lost .*any sign of life of {name} \(rollout\.(silence|update)_timeout_s\)"
    assert any(re.search(said, event) for event in run.events), run.events
    assert_complete(run.config)


@pytest.mark.slow
async def test_all_workers_are_killed_at_once(tmp_path: Path) -> None:
    run = simulation(tmp_path, steps=20)
    run.hold()
    async with run.run() as (fleet, training):
        await until(fleet, UP, 3)
        for process in fleet.process_ids.values():
            os.kill(process, signal.SIGKILL)
        async with asyncio.timeout(150):
            await fleet.wait_until(lambda: fleet.state.restarts == 3)
        run.release()
        await training
    assert_complete(run.config)


async def test_engines_sleep_while_the_learner_learns(tmp_path: Path) -> None:
    """All engines sleep in every step, also one that joins during the step. A simulated worker that samples while it
    sleeps fails."""
    run = simulation(tmp_path, steps=6, sleep_while_learning=True)
    asleep: list[int] = []
    async with run.run() as (fleet, training):
        learn = run.learner.learn

        async def watched(mini_batches: Sequence[TrainingBatch]) -> dict[str, float]:
            asleep.append(len(fleet.asleep))
            assert fleet.asleep == set(fleet.state.healthy_processes)
            if len(asleep) == 3:
                assert kill(min(fleet.process_ids.values()))
            await asyncio.sleep(0.2)
            return await learn(mini_batches)

        run.learner.learn = watched  # type: ignore[method-assign]
        await training
    assert len(asleep) == 6
    assert all(asleep)
    assert fleet.state.restarts == 1
    assert_complete(run.config)


async def test_the_fleet_grows_and_shrinks_under_load(tmp_path: Path) -> None:
    run = simulation(tmp_path, steps=60, workers=1, max_staleness=1)
    run.hold()
    async with run.run() as (fleet, training):
        await until(fleet, UP, 1)
        assert len(fleet.resize(4).added) == 3
        await until(fleet, UP, 4)
        assert len(fleet.resize(1).drained) == 3
        await until(fleet, {WorkerState.RETIRED}, 3)
        assert len(fleet.process_ids) == 1
        run.release()
        await training
    assert fleet.state.restarts == 0, "a drained worker must not be killed"
    assert_complete(run.config)


def scale(run_directory: Path, workers: int, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `launch.py scale` as a user does: in another process, without the environment that Ray has set here."""
    command = ["launch.py", "scale", str(run_directory), "--rollout-workers", str(workers), *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, *command],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


async def test_a_live_run_is_scaled_by_command(tmp_path: Path) -> None:
    run = simulation(tmp_path, steps=40, workers=1)
    directory = RunDirectory(run.config.run_directory)
    say = run.events.append
    run.hold()
    async with run.run() as (fleet, training), listening(run.config.name, fleet, say, say):
        with pytest.raises(RunIsLiveError, match="with the name run is already live"):
            await listening(run.config.name, fleet, say, say).__aenter__()
        directory.write_config(run.config)
        directory.ray_address_file.write_text(ray.get_runtime_context().gcs_address)
        done = await asyncio.to_thread(scale, directory.path, 2)
        assert (done.returncode, done.stdout) == (0, "rollout workers: 1 → 2; starting rollout-1\n"), done
        await until(fleet, UP, 2)
        done = await asyncio.to_thread(scale, directory.path, 1)
        assert done.stdout.startswith("rollout workers: 2 → 1; draining rollout-"), done
        await until(fleet, {WorkerState.RETIRED}, 1)
        run.release()
        await training
    assert_complete(run.config)

    done = await asyncio.to_thread(scale, directory.path, 2)
    assert done.returncode == 2
    assert "the Ray cluster at" in done.stderr
    assert "has no live run with the name run" in done.stderr
    done = await asyncio.to_thread(scale, directory.path, 2, "--address", "127.0.0.1:1")
    assert done.returncode == 2
    assert "no Ray cluster answers at 127.0.0.1:1" in done.stderr
    done = await asyncio.to_thread(scale, tmp_path / "nowhere", 2)
    assert done.returncode == 2
    assert "nowhere: this is not a run directory" in done.stderr
    directory.ray_address_file.unlink()
    done = await asyncio.to_thread(scale, directory.path, 2)
    assert done.returncode == 2
    assert "does not contain the address of its Ray cluster" in done.stderr


@pytest.mark.slow
async def test_a_fleet_that_is_too_small_grows_automatically(tmp_path: Path) -> None:
    run = simulation(tmp_path, steps=60, workers=1, max_workers=2, inflight_prompts_per_worker=2)
    run.hold()
    async with run.run() as (fleet, training):
        await until(fleet, UP, 2)
        run.release()
        await training
        with pytest.raises(ValueError, match=r"rollout\.max_workers = 2"):
            fleet.resize(3)
    assert any("rollout workers: 1 → 2" in event for event in run.events), run.events
    assert_complete(run.config)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("pull-dies", "died"),
        ("pull-half", "away from the learner's"),
        ("engine-error", "the engine failed in a live actor"),
        ("endless-response", "rollout.request_timeout_s"),
    ],
)
async def test_a_worker_that_fails_is_replaced(tmp_path: Path, fault: str, said: str) -> None:
    run = simulation(tmp_path, steps=12, request_timeout_s=5.0)
    (run.faults / fault).touch()
    await run.finish()
    assert not list(run.faults.iterdir()), "the failure did not happen"
    assert any("was lost" in event and said in event for event in run.events), run.events
    assert_complete(run.config)


async def test_the_controller_is_killed_and_the_run_resumed(tmp_path: Path) -> None:
    run = simulation(tmp_path, steps=20, max_staleness=1)
    run.config = run.config.model_copy(
        update={"checkpoint": run.config.checkpoint.model_copy(update={"every_steps": 5})}
    )
    run.hold()
    async with run.run() as (fleet, _):
        async with asyncio.timeout(150):
            await fleet.wait_until(lambda: 13 in run.learner.versions)
    run.release()
    await run.finish()
    assert_complete(run.config)
