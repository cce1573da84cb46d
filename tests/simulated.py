"""Complete runs without models. Ray actors that sleep replace the engines, and a learner that counts replaces
DeepSpeed; the controller, the fleet, the buffers and the run directory are real.

`python -m tests.simulated SPECIFICATION` starts such a run in its own process, which can be killed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.simulated_engines import SimulatedEngine
from cluster.core.actor_options import EngineOptions
from cluster.core.config import ClusterConfig, RunConfig
from cluster.core.types import (
    IndexedVerdicts,
    LogprobGap,
    PolicyVersion,
    Prompt,
    Response,
    Sampled,
    Sampling,
    ScoringRequest,
    TrainingBatch,
    Verdict,
    VersionSpan,
)
from cluster.core.weight_transport import CoordinatorContext
from cluster.run_state.checkpoints import CheckpointStore
from cluster.run_state.run_directory import RunDirectory
from cluster.runtime.connect import connect
from cluster.tracking import RunConsole, Tracker, read_metrics
from cluster.training.actors import RayWorkerFactory, engine_options
from cluster.training.control import listening
from cluster.training.controller import Controller
from cluster.training.prompts import PromptSource, TokenizedProblem
from learner.state.state_files import FileRecord
from reward.tasks.countdown.puzzles import Puzzle
from rollout.engine.tokenizer import EncodedPrompt
from rollout.fleet.fleet import RolloutFleet
from rollout.weights.pull import PullCoordinator

TOKENS = 8
PROBLEM = Puzzle((1, 2, 3), 6)
"""A problem for evaluations, which report its difficulty. No response solves it."""
GAP_PER_VERSION = 0.01
"""The decrease of every token's log-probability from one weight version to the next."""


def logprob(version: int) -> float:
    """Return the log-probability of every token under the weights of `version`."""
    return -1.0 - GAP_PER_VERSION * version


def simulated_worker(response_s: float, faults: Path) -> type:
    """Return a class with the methods of `RolloutWorker`. A response takes `response_s` on average.

    A file in the folder `faults` makes one worker fail once. The name of the file is the kind of the failure, and the
    worker that fails deletes it.
    """

    def meets(fault: str) -> bool:
        try:
            os.unlink(faults / fault)
        except FileNotFoundError:
            return False
        return True

    class SimulatedWorker(SimulatedEngine):
        def __init__(self, name: str, options: EngineOptions) -> None:
            super().__init__(self._sampling_s, _respond)
            self._random = random.Random(f"{name}{os.getpid()}")
            self._failure: BaseException | None = None

        async def submit(self, prompts: Sequence[Prompt]) -> None:
            if meets("engine-error"):
                self._failure = RuntimeError("the engine failed in a live actor")
                self._news.set()
            await super().submit(prompts)

        def _sampling_s(self, prompt: Prompt, index: int) -> float:
            return 1e6 if meets("endless-response") else self._random.expovariate(1 / response_s)

        async def collect(self, max_wait_s: float, gather_s: float) -> list[Sampled]:
            sampled = await super().collect(max_wait_s, gather_s)
            if self._failure is not None:
                raise self._failure
            return sampled

        async def update_weights(self, version: PolicyVersion, route: Any = None) -> LogprobGap:
            if meets("pull-dies"):
                os._exit(1)
            if meets("pull-half"):
                return LogprobGap(100.0, 100.0)
            return await super().update_weights(version, route)

    return SimulatedWorker


def _respond(index: int, began_under: int, version: int) -> Response:
    tokens, logprobs = np.arange(TOKENS), np.full(TOKENS, logprob(began_under), dtype=np.float32)
    spans = (VersionSpan(began_under, 0, 1), VersionSpan(version, 1, TOKENS))
    return Response(tokens, logprobs, "answer", "stop", spans)


class Rewards:
    """A scorer for which every second response is correct, independent of the batches that they arrive in."""

    def __init__(self) -> None:
        self._turns = itertools.cycle(
            [Verdict("incorrect", 0.0, None, ""), Verdict("correct", 1.0, None, "")]
        )

    async def score(self, answers: Sequence[ScoringRequest]) -> AsyncIterator[IndexedVerdicts]:
        yield [(index, next(self._turns)) for index in range(len(answers))]


@dataclass
class CountingLearner:
    """A learner that counts its steps.

    It begins step `held_step` only after `released` is set: a test that acts on a live run holds the run's last step,
    because no number of steps outlasts a slow machine.
    """

    learn_s: float = 0.0
    weight_bytes: int = 1
    versions: list[int] = field(default_factory=list)
    held_step: int | None = None
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def learn(self, mini_batches: Sequence[TrainingBatch]) -> dict[str, float]:
        await asyncio.sleep(self.learn_s)
        if self.versions[-1] + 1 == self.held_step:
            await self.released.wait()
        # The batch may be empty: groups with zero reward variance give no gradient signal.
        sampled = [one.sampler_logprobs for batch in mini_batches for one in batch.samples] or [np.empty(0)]
        gaps = np.abs(np.concatenate(sampled) - logprob(self.versions[-1]))
        return {
            "logprob_gap/mean": float(gaps.mean()) if gaps.size else 0.0,
            "logprob_gap/max": float(gaps.max(initial=0.0)),
            "learner_tokens": float(gaps.size),
        }

    async def publish(self, version: int) -> PolicyVersion:
        self.versions.append(version)
        return PolicyVersion(version, ray.put(np.zeros(self.weight_bytes, dtype=np.uint8)), (), ())

    async def save(self, directory: Path) -> dict[Path, FileRecord]:
        directory.mkdir()
        return {}

    async def load(self, directory: Path, scratch: Path) -> None:
        pass


@dataclass
class Simulation:
    """A run of `config`. `events` are the messages that its console would print."""

    config: RunConfig
    faults: Path
    response_s: float = 0.05
    learner: CountingLearner = field(default_factory=CountingLearner)
    problems: int = 1000
    events: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[tuple[RolloutFleet, asyncio.Task[None]]]:
        """Start the run. Yields the fleet, and the controller's loop as a task."""
        config = self.config
        directory = RunDirectory(config.run_directory)
        problems = [TokenizedProblem(PROBLEM, EncodedPrompt("question", (1, 2, 3)))] * self.problems

        def sampling(prompt_id: str) -> Sampling:
            return Sampling(config.rollout.responses_per_prompt, 1.0, TOKENS, None)

        eval_prompts = [Prompt("eval/0", "question", (1, 2, 3), PROBLEM, sampling("eval/0"))]
        checkpoints = CheckpointStore(directory.checkpoints, config.checkpoint.keep)
        newest = checkpoints.newest_intact(self.events.append)
        with (
            RunConsole(config.name, config.steps, quiet=True) as console,
            Tracker(
                config, directory, console, resume_step=newest.progress.step if newest else None
            ) as tracker,
        ):
            async with asyncio.TaskGroup() as background:
                factory = RayWorkerFactory(
                    config,
                    engine_options(config, Path("no-model")),
                    directory,
                    simulated_worker(self.response_s, self.faults),
                )
                coordinator = PullCoordinator(
                    CoordinatorContext(
                        config.rollout.update_timeout_s, 1, None, self.events.append, background
                    )
                )
                fleet = RolloutFleet(config, factory, Rewards(), coordinator, self.events.append, background)
                controller = Controller(
                    config,
                    PromptSource(problems, config.seed, sampling),
                    eval_prompts,
                    fleet,
                    self.learner,  # type: ignore[arg-type]
                    checkpoints,
                    tracker,
                    newest,
                )
                training = asyncio.create_task(controller.run())
                try:
                    yield fleet, training
                finally:
                    training.cancel()
                    await asyncio.gather(training, return_exceptions=True)
                    await fleet.stop()

    async def finish(self) -> None:
        async with self.run() as (_, training):
            await training

    def hold(self) -> None:
        """Let the run wait before its last step until `release` is called."""
        self.learner.held_step = self.config.steps

    def release(self) -> None:
        self.learner.released.set()


def assert_complete(config: RunConfig) -> list[dict[str, Any]]:
    """Assert that the run is complete. Returns its rows of metrics.

    Every step was done, every admitted prompt that is not still in flight was trained on or dropped exactly once, no
    sample was staler than allowed, and the log-probabilities of sampler and learner agree.
    """
    rows = list(read_metrics(RunDirectory(config.run_directory).metrics_file))
    rollout, steps = config.rollout, rows[1:]
    assert [row["step"] for row in rows] == list(range(config.steps + 1))
    trained = [prompt for row in steps for prompt in row["prompts"]]
    dropped = [prompt for row in steps for ids in row.get("dropped", {}).values() for prompt in ids]
    assert len(trained) == config.steps * rollout.prompts_per_step == rows[-1]["progress/prompts_trained"]
    assert len(dropped) == rows[-1]["progress/prompts_dropped"]
    assert len({*trained, *dropped}) == len(trained) + len(dropped), "a prompt was settled twice"
    for row in steps:
        assert 0 <= row["staleness/max"] <= rollout.max_staleness
        assert row["logprob_gap/max"] <= GAP_PER_VERSION * row["staleness/max"] + 1e-4
    return rows


def simulation(tmp_path: Path, steps: int = 10, **rollout: Any) -> Simulation:
    faults = tmp_path / "faults"
    faults.mkdir(exist_ok=True)
    config = RunConfig.model_validate(
        {
            "directory": str(tmp_path / "runs"),
            "steps": steps,
            "rollout": {
                "workers": 3,
                "prompts_per_step": 8,
                "responses_per_prompt": 4,
                "prompts_per_request": 2,
                "inflight_prompts_per_worker": 8,
                "cpus_per_worker": 0.01,
                **rollout,
            },
            "evaluation": {"every_steps": 1000},
            "checkpoint": {"every_steps": 1000},
            "tracking": {"wandb": "disabled"},
        }
    )
    return Simulation(config, faults)


async def live(specification: dict[str, Any]) -> None:
    """Start or resume a run in a cluster that is already running."""
    config = RunConfig.model_validate(specification["config"])
    run = Simulation(config, Path(specification["faults"]))
    say = run.events.append
    async with run.run() as (fleet, training), listening(config.name, fleet, say, say):
        await training


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    connect(ClusterConfig(address=given["address"]))
    asyncio.run(live(given))
