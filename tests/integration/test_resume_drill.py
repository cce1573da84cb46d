"""The resume drill: a learner rank is killed with SIGKILL during a save, repeatedly and at random moments.

The controller, the checkpoint store, the tracker and the DeepSpeed ranks are real; only the responses are synthetic
(tests/synthetic.py). After each kill the run is started again, as the same command would start it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import ray
from safetensors.numpy import load

from cluster.core.actor import Actor
from cluster.core.actor_options import LearnerOptions
from cluster.core.config import RunConfig
from cluster.run_state.checkpoints import CheckpointStore
from cluster.run_state.run_directory import RunDirectory
from cluster.runtime.placement import cpu_environment
from cluster.tracking import RunConsole, Tracker
from cluster.tracking.jsonl import read_metrics
from cluster.training.controller import Controller
from learner.engine.group import LearnerGroup
from learner.engine.rank import LearnerRank
from learner.state.state_files import FileRecord
from tests.builders import tiny_model
from tests.synthetic import SyntheticFleet, expected_prompts, synthetic_source

pytestmark = pytest.mark.usefixtures("local_ray")

ROWS = 11
"""The number of training prompts. It is small, so that the run has several epochs."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model with 4 million parameters (50 MB with Adam's moments), so that saving it takes some time."""
    directory = tmp_path_factory.mktemp("models") / "random"
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    tiny_model("llama", tied=True, **sizes, initializer_range=0.02).float().save_pretrained(directory)
    return directory


@dataclass
class Executioner:
    """Chooses which rank is killed and when, and counts the kills."""

    chance: random.Random
    save_s: float | None = None
    """The duration of the last complete save. Before there is one, no rank is killed."""
    in_a_save: int = 0
    missed: int = 0
    report: list[str] = field(default_factory=list)


class MortalLearner(LearnerGroup):
    """A learner that kills one of its ranks at a random moment of its save number `doomed`, or never if that is 0."""

    def __init__(
        self, ranks: list[Actor[LearnerRank]], options: LearnerOptions, executioner: Executioner, doomed: int
    ) -> None:
        super().__init__(ranks, options)
        self._executioner = executioner
        self._doomed = doomed

    async def start(self) -> list[int]:
        self._process_ids = await super().start()
        return self._process_ids

    async def save(self, directory: Path) -> dict[Path, FileRecord]:
        started, executioner = time.monotonic(), self._executioner
        saving = asyncio.ensure_future(super().save(directory))
        if executioner.save_s is not None:
            self._doomed -= 1
            if self._doomed == 0:
                await self._kill_one(directory, saving, executioner)
        written = await saving
        executioner.save_s = time.monotonic() - started
        return written

    async def _kill_one(self, directory: Path, saving: asyncio.Future[Any], executioner: Executioner) -> None:
        assert executioner.save_s is not None
        wait_s = executioner.chance.uniform(0, 0.9) * executioner.save_s
        await asyncio.sleep(wait_s)
        rank = executioner.chance.randrange(len(self._process_ids))
        os.kill(self._process_ids[rank], signal.SIGKILL)
        if saving.done():
            executioner.missed += 1
            return
        executioner.in_a_save += 1
        files = [file for file in directory.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        executioner.report.append(
            f"kill {executioner.in_a_save:2}: rank {rank} of {len(self._process_ids)}, {1000 * wait_s:4.0f} ms into "
            f"the save of {directory.parent.name} ({len(files)} files with {size / 2**20:4.1f} MiB were written)"
        )


def configuration(directory: Path, name: str, steps: int, max_staleness: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": name,
            "directory": str(directory),
            "steps": steps,
            "rollout": {"prompts_per_step": 4, "responses_per_prompt": 4, "max_staleness": max_staleness},
            "learner": {
                "ranks": 2,
                "learning_rate": 1e-3,
                "lr_schedule": "cosine",
                "max_logprob_gap": 100.0,  # the log-probabilities of the sampler are synthetic
            },
            "evaluation": {"every_steps": steps, "prompts": 1},
            "checkpoint": {"every_steps": 1, "keep": 1},
            "tracking": {"wandb": "disabled"},
        }
    )


async def live(
    config: RunConfig, model: Path, executioner: Executioner, doomed: int
) -> dict[str, np.ndarray] | None:
    """Start or resume the run, as the command does. Returns the final weights, or None if a rank was killed."""
    run = RunDirectory(config.run_directory)
    store = CheckpointStore(run.checkpoints, config.checkpoint.keep)
    start = store.newest_intact(pytest.fail)
    if start is not None:
        progress = start.progress
        assert progress.trained_prompts == 4 * progress.step
        assert progress.trained_prompts + len(progress.in_flight) == progress.position, "a prompt is lost"
        if executioner.report and executioner.report[-1].endswith(")"):
            executioner.report[-1] += f"; resumed from step {progress.step}"
    options = LearnerOptions(
        str(model), "float32", 1.0, 0, config.learner, config.objective, (), config.steps, 64
    )
    actor = ray.remote(LearnerRank).options(
        num_cpus=0.5, runtime_env={"env_vars": cpu_environment(1, on_gpu=False)}
    )
    ranks: list[Actor[LearnerRank]] = [
        Actor(actor.remote(rank, options)) for rank in range(config.learner.ranks)
    ]
    learner = MortalLearner(ranks, options, executioner, doomed)
    console = RunConsole(config.name, config.steps, quiet=True)
    try:
        with Tracker(config, run, console, resume_step=start.progress.step if start else -1) as tracker:
            await learner.start()
            controller = Controller(
                config,
                synthetic_source(config, ROWS),
                [synthetic_source(config, ROWS).by_id("eval/0")],
                cast(Any, SyntheticFleet(executioner.chance)),
                learner,
                store,
                tracker,
                start,
            )
            await controller.run()
        return load(b"".join(await (await learner.publish(config.steps)).weights))
    except ray.exceptions.RayError:  # raised by the killed rank, or by a rank that waited for it
        return None
    finally:
        for rank in ranks:
            ray.kill(rank.handle)


async def drill(
    config: RunConfig, model: Path, kills: int, seed: int, ranks: tuple[int, ...] = (2,)
) -> dict[str, np.ndarray]:
    """Start the run again after each kill until `kills` of them happened during a save, then let it finish.

    Each start chooses its number of ranks from `ranks`. Returns the final weights.
    """
    executioner = Executioner(random.Random(seed))

    async def life(doomed: int) -> dict[str, np.ndarray] | None:
        learner = config.learner.model_copy(update={"ranks": executioner.chance.choice(ranks)})
        return await live(config.model_copy(update={"learner": learner}), model, executioner, doomed)

    while executioner.in_a_save < kills:
        assert executioner.missed <= kills, "too few kills happen during saves, so the drill tests nothing"
        assert await life(doomed=executioner.chance.choice([1, 2])) is None, "no rank was killed"
    weights = await life(doomed=0)
    assert weights is not None
    assert executioner.in_a_save == kills
    print(
        *executioner.report,
        f"{kills} kills during a save, {executioner.missed} more between saves; the last complete save took "
        f"{1000 * (executioner.save_s or 0):.0f} ms",
        sep="\n",
    )
    return weights


def trained_prompts(config: RunConfig) -> list[str]:
    rows = list(read_metrics(RunDirectory(config.run_directory).metrics_file))
    assert [row["step"] for row in rows] == list(range(config.steps + 1))
    return [prompt for row in rows for prompt in row.get("prompts", [])]


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_run_killed_in_three_saves_ends_with_the_weights_of_an_undisturbed_run(
    model: Path, tmp_path: Path
) -> None:
    """The weights are bit-identical, after training on the same prompts in the same order with the same seeds."""
    config = configuration(tmp_path, "killed", steps=10, max_staleness=0)
    weights = await drill(config, model, kills=3, seed=0)
    expected = expected_prompts(config, ROWS, 4 * config.steps)
    source = synthetic_source(config, ROWS)
    assert [(p, source.by_id(p).sampling.seed) for p in trained_prompts(config)] == expected

    alone = configuration(tmp_path, "alone", steps=10, max_staleness=0)
    undisturbed = await live(alone, model, Executioner(random.Random(1)), doomed=0)
    assert undisturbed is not None
    assert weights.keys() == undisturbed.keys()
    for name, weight in undisturbed.items():
        np.testing.assert_array_equal(weights[name], weight, err_msg=name)


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_a_run_killed_in_twenty_saves_loses_no_prompt(model: Path, tmp_path: Path) -> None:
    """The run is asynchronous, so every checkpoint has prompts in flight. Each start has one or two ranks."""
    config = configuration(tmp_path, "killed", steps=40, max_staleness=1)
    await drill(config, model, kills=20, seed=0, ranks=(1, 2))
    trained = trained_prompts(config)
    assert len(trained) == len(set(trained)) == 4 * config.steps
    handed_out = [prompt for prompt, _ in expected_prompts(config, ROWS, 4 * (config.steps + 1))]
    assert set(trained) <= set(handed_out)
