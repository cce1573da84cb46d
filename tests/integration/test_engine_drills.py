"""Failure drills with real engines and a real learner: vLLM workers are killed, stopped and scaled, and fail in other
ways. Each drill takes minutes: `make drill`.

In each drill the run completes, every admitted prompt is trained on or dropped exactly once, no sample is staler than
allowed, and the log-probabilities of sampler and learner agree.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.numpy import load_file, save_file

from cluster.configuration.loading import load_config
from cluster.core.config import RunConfig
from cluster.core.types import PolicyVersion, Prompt, Sampling, TrainingBatch
from cluster.core.weight_transport import EngineRoute
from cluster.run_state.checkpoints import CheckpointStore
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking import RunConsole, Tracker
from cluster.training.actors import ActorGraph
from cluster.training.controller import Controller
from cluster.training.prompts import PromptSource, evaluation_prompts, load_dataset, training_sampling
from rollout.engine.worker import RolloutWorker
from rollout.fleet.fleet import RolloutFleet
from rollout.fleet.state import WorkerState
from rollout.weights import broadcast
from tests.integration.runs import (
    assert_every_prompt_trained_once,
    finish,
    rows_of,
    start,
    wait_for_step,
)

pytestmark = [pytest.mark.slow, pytest.mark.drill, pytest.mark.timeout(1500)]

MAX_GAP = 1e-4
UP = {WorkerState.STALE, WorkerState.HEALTHY}


def mortal_engine(faults: Path) -> type:
    """Return a `RolloutWorker` of which one worker fails once, as the name of a file in the folder `faults` says."""

    def meets(fault: str) -> bool:
        try:
            os.unlink(faults / fault)
        except FileNotFoundError:
            return False
        return True

    class MortalWorker(RolloutWorker):
        async def start(self) -> int:
            os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = (
                "1"  # allows to send a function to the engine, as below
            )
            return await super().start()

        async def submit(self, prompts: Sequence[Prompt]) -> None:
            dies = meets("engine-dies")
            if dies or meets("engine-hangs"):

                def poison(engine_worker: Any) -> None:
                    def fail(*_: Any, **__: Any) -> None:
                        while not dies:
                            time.sleep(1)
                        raise RuntimeError("a fatal error in the model")

                    engine_worker.model_runner.execute_model = fail

                await self._engine.collective_rpc(poison)
            await super().submit(prompts)

        async def _sample(
            self, token_ids: Sequence[int], sampling: Sampling, seed: int | None, request_id: str
        ) -> Any:
            if meets("endless-response"):
                await asyncio.Event().wait()
            return await super()._sample(token_ids, sampling, seed, request_id)

        async def _swap(self, route: EngineRoute, version: PolicyVersion) -> None:
            if route.source.endswith("FileSource") and meets("half-a-pull"):
                path = Path(route.arguments[0])
                weights = load_file(path)
                half = path.with_suffix(".half")
                kept = {name: weights[name] for name in sorted(weights)[::2]}
                save_file(kept, half, {"version": str(version.version)})
                route = EngineRoute(route.source, (str(half), version.version))
            swapping = asyncio.ensure_future(super()._swap(route, version))
            if route.source.endswith("ChannelSource") and meets("half-a-broadcast"):
                await asyncio.sleep(0.005)  # a part of the weights has arrived
                os.kill(os.getpid(), signal.SIGKILL)
            await swapping

    return MortalWorker


@dataclass
class EngineRun:
    """A run of `config` with real parts.

    Until `hurry` is called each step takes `pace_s` longer and the last step waits, so that the run does not end before
    the drill.
    """

    config: RunConfig
    faults: Path
    pace_s: float = 3.0
    events: list[str] = field(default_factory=list)
    hurried: asyncio.Event = field(default_factory=asyncio.Event)

    def hurry(self) -> None:
        self.hurried.set()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[tuple[RolloutFleet, asyncio.Task[None]]]:
        config, directory = self.config, RunDirectory(self.config.run_directory)
        model = Path(config.model.source)
        dataset = load_dataset(config, model)
        graph = ActorGraph(config, directory, model, mortal_engine(self.faults))
        probe = tuple(problem.encoded.token_ids for problem in dataset.train[:2])
        with (
            RunConsole(config.name, config.steps, quiet=True) as console,
            Tracker(config, directory, console) as tracker,
        ):
            async with (
                graph.learner(probe) as learner,
                graph.rewards() as rewards,
                graph.fleet(rewards, self.events.append, learner) as fleet,
            ):
                await learner.start()
                learn, steps = learner.learn, itertools.count(1)

                async def paced(mini_batches: Sequence[TrainingBatch]) -> dict[str, float]:
                    last = next(steps) == config.steps
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self.hurried.wait(), None if last else self.pace_s)
                    return await learn(mini_batches)

                learner.learn = paced  # type: ignore[method-assign]
                controller = Controller(
                    config,
                    PromptSource(
                        dataset.train, config.seed, lambda prompt_id: training_sampling(config, prompt_id)
                    ),
                    evaluation_prompts(config, dataset),
                    fleet,
                    learner,
                    CheckpointStore(directory.checkpoints, config.checkpoint.keep),
                    tracker,
                )
                training = asyncio.create_task(controller.run())
                try:
                    yield fleet, training
                finally:
                    training.cancel()
                    await asyncio.gather(training, return_exceptions=True)

    async def hears(self, fleet: RolloutFleet, *words: str) -> None:
        """Wait for an event that contains all the words."""
        await until(
            fleet, lambda: any(all(word in event for word in words) for event in self.events), str(words)
        )


async def until(
    fleet: RolloutFleet, condition: Callable[[], bool], what: str, timeout_s: float = 240
) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await fleet.wait_until(condition)
    except TimeoutError:
        raise AssertionError(f"waited {timeout_s:g} s for {what}; {fleet.state.members}") from None


async def all_up(fleet: RolloutFleet) -> None:
    await until(fleet, lambda: fleet.state.started_workers == fleet.state.size, "the whole fleet")


def engine_run(write_config: Callable[..., Path], tmp_path: Path, steps: int, **rollout: Any) -> EngineRun:
    faults = tmp_path / "faults"
    faults.mkdir()
    config_file = write_config(
        name="drill",
        steps=steps,
        rollout={"cpus_per_worker": 0.2, **rollout},
        learner={"max_logprob_gap": MAX_GAP},
        evaluation={"every_steps": steps},
        checkpoint={"every_steps": 50},
    )
    return EngineRun(load_config(config_file).config, faults)


def assert_complete(config: RunConfig) -> list[dict[str, Any]]:
    rows = rows_of(config)
    assert [row["step"] for row in rows] == list(range(config.steps + 1))
    assert_every_prompt_trained_once(rows, config)
    for row in rows[1:]:
        assert 0 <= row["staleness/max"] <= config.rollout.max_staleness
        assert row["staleness/max"] > 0 or row["logprob_gap/max"] < MAX_GAP
    assert all(row["logprob_gap/probe_max"] < MAX_GAP for row in rows)
    return rows


@pytest.mark.usefixtures("local_ray")
async def test_fifty_kills(write_config: Callable[..., Path], tmp_path: Path) -> None:
    """A random running worker is killed every three seconds, which is less than an engine takes to start."""
    run = engine_run(
        write_config,
        tmp_path,
        steps=200,
        workers=3,
        max_staleness=1,
        max_consecutive_failures=10,
        silence_timeout_s=30,
    )
    order, kills, started = random.Random(0), 0, time.monotonic()
    async with run.run() as (fleet, training):
        while kills < 50:
            await asyncio.sleep(3)
            assert not training.done(), training
            if up := sorted(fleet.process_ids.values()):
                os.kill(order.choice(up), signal.SIGKILL)
                kills += 1
                await until(fleet, lambda: fleet.state.restarts >= kills, "the loss to be noticed")  # noqa: B023
        killing_s = time.monotonic() - started
        run.hurry()
        await training
    rows = assert_complete(run.config)
    assert rows[-1]["fleet/restarts"] >= 50
    print(
        f"50 kills in {killing_s:.0f} s; {rows[-1]['fleet/restarts']:.0f} restarts; {run.config.steps} steps done"
    )


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("transport", ["pull", "broadcast"])
async def test_one_run_survives_all_failures_of_engines(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    """The failures follow one another: a fatal error in a live actor, an engine that hangs, incomplete weights, a
    response that never ends, a stopped process, all workers killed at once, and a fleet of 1 → 4 → 1 workers."""
    monkeypatch.setattr(broadcast, "BROADCAST_TIMEOUT_S", 5.0)
    run = engine_run(
        write_config,
        tmp_path,
        steps=120,
        workers=2,
        silence_timeout_s=15,
        update_timeout_s=60,  # a worker may be stopped in the middle of an update, to which this limit applies
        request_timeout_s=40,
        weight_transport=transport,
    )
    async with run.run() as (fleet, training):
        await all_up(fleet)
        for fault, said in (
            ("engine-dies", "died"),
            ("engine-hangs", "rollout.silence_timeout_s"),
            ("half-a-pull", "weight version") if transport == "pull" else ("half-a-broadcast", "died"),
            ("endless-response", "rollout.silence_timeout_s"),  # after all other responses have ended
        ):
            run.events.clear()
            (run.faults / fault).touch()
            await run.hears(fleet, "was lost", said)
            assert not list(run.faults.iterdir())
            await all_up(fleet)
            assert not training.done(), training

        run.events.clear()
        name, process = next(iter(fleet.process_ids.items()))
        os.kill(process, signal.SIGSTOP)
        await run.hears(fleet, f"{name} was lost", "for any sign of life of")
        await all_up(fleet)

        run.events.clear()
        before = fleet.state.restarts
        for process in fleet.process_ids.values():
            os.kill(process, signal.SIGKILL)
        await until(fleet, lambda: fleet.state.restarts == before + 2, "both losses")
        await all_up(fleet)

        for workers in (1, 4, 1):
            before = fleet.state.restarts
            fleet.resize(workers)
            await all_up(fleet)
            await until(fleet, lambda: len(fleet.process_ids) == workers, f"{workers} processes")  # noqa: B023
            assert fleet.state.restarts == before, "a drained worker must not be killed"
        run.hurry()
        await training
    assert_complete(run.config)


def is_an_agent_of_ray(process: psutil.Process) -> bool:
    """Return True for Ray's two agents, which notice the end of their raylet only once a minute."""
    return any(name in " ".join(process.cmdline()) for name in ("DashboardAgent", "RuntimeEnvAgent"))


def assert_gone(processes: Iterable[psutil.Process], timeout_s: float) -> None:
    _, alive = psutil.wait_procs(list(processes), timeout=timeout_s)
    assert not alive, f"still running: {[process.name() for process in alive]}"


def test_the_controller_is_killed(write_config: Callable[..., Path]) -> None:
    """The command itself gets SIGKILL twice. The same command resumes the run."""
    config_file = write_config(
        name="killed", steps=30, rollout={"max_staleness": 1}, checkpoint={"every_steps": 3},
        evaluation={"every_steps": 30},
    )  # fmt: skip
    config = load_config(config_file).config
    for step in (5, 14):
        process = start(config_file)
        wait_for_step(config, step, process)
        children = psutil.Process(process.pid).children(recursive=True)
        agents = [child for child in children if is_an_agent_of_ray(child)]
        process.kill()
        process.communicate(timeout=60)
        assert_gone(set(children) - set(agents), timeout_s=60)
        assert_gone(agents, timeout_s=150)
    output = finish(start(config_file), config)
    assert "resuming at step" in output
    assert_complete(config)
