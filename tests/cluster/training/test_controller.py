"""The fleet's work during an evaluation, and updates that are not finite."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from cluster.core.types import PolicyVersion, Prompt, ScoredGroup, TrainingBatch
from cluster.run_state.checkpoints import CheckpointStore
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking import RunConsole, Tracker
from cluster.training.controller import Controller
from learner.engine.finite import NonFiniteError
from learner.state.state_files import FileRecord
from rollout.fleet.buffer import WorkBuffer
from tests.cluster.training.test_resumption import ROWS, Fuse, HashingLearner, Ledger, configuration
from tests.synthetic import SyntheticFleet, synthetic_source


class Watched(SyntheticFleet):
    """Records the number of training prompts that wait for workers when an evaluation begins."""

    def __init__(self) -> None:
        super().__init__(random.Random(0))
        self.training: WorkBuffer | None = None
        self.waiting: list[int] = []

    def feed(self, buffer: WorkBuffer) -> None:
        self.training = buffer
        super().feed(buffer)

    async def sample(self, prompts: Sequence[Prompt]) -> list[ScoredGroup]:
        self.waiting.append(self.training.waiting_prompts if self.training else 0)
        return await super().sample(prompts)


def test_workers_can_start_on_the_next_batch_during_an_evaluation(tmp_path: Path) -> None:
    """This holds in on-policy runs too, because the evaluated weights are the next batch's. After the last step there
    is no next batch."""
    config = configuration()
    config = config.model_copy(
        update={"steps": 3, "evaluation": config.evaluation.model_copy(update={"every_steps": 1})}
    )
    fleet, source = Watched(), synthetic_source(config, ROWS)
    controller = Controller(
        config,
        source,
        [source.by_id("eval/0")],
        cast(Any, fleet),
        cast(Any, HashingLearner(Fuse(None))),
        CheckpointStore(tmp_path, 1),
        cast(Any, Ledger(Fuse(None))),
    )
    asyncio.run(controller.run())
    assert fleet.waiting == [4, 4, 4, 0]


class Poisoned(HashingLearner):
    """Produces a number that is not finite in its fourth step, in the way that `where` names."""

    where = ""
    batches = 0

    async def learn(self, mini_batches: Sequence[TrainingBatch]) -> dict[str, float]:
        metrics = await super().learn(mini_batches)
        self.batches += 1
        if self.batches == 4 and self.where == "learn":
            raise NonFiniteError("the loss of optimizer step 1 of the batch is nan")
        if self.batches == 4 and self.where in ("objective/loss", "objective/grad_norm"):
            metrics[self.where] = math.nan if self.where == "objective/loss" else math.inf
        if self.batches == 4 and self.where == "gap":
            metrics["logprob_gap/max"] = math.nan
        return metrics

    async def publish(self, version: int) -> PolicyVersion:
        assert version <= self.batches
        published = await super().publish(version)
        if version == 4 and self.where == "publish":
            raise NonFiniteError("the weights contain NaN or infinity: lm_head.weight")
        if version == 4 and self.where == "probe":
            probe = np.array([-1.0, math.nan], dtype=np.float32)
            return PolicyVersion(version, None, ((1, 2, 3),), (probe,))
        return published


class PoisonedState(HashingLearner):
    """Has a state that is not finite when its second checkpoint is saved."""

    saves = 0

    async def save(self, directory: Path) -> dict[Path, FileRecord]:
        self.saves += 1
        if self.saves == 2:
            raise NonFiniteError("the tensors of the optimizer contain NaN or infinity: exp_avg_sq")
        return await super().save(directory)


def test_a_state_that_is_not_finite_replaces_no_checkpoint(tmp_path: Path) -> None:
    source = synthetic_source(configuration(), ROWS)
    store = CheckpointStore(tmp_path, 1)
    controller = Controller(
        configuration(),
        source,
        [source.by_id("eval/0")],
        cast(Any, SyntheticFleet(random.Random(0))),
        cast(Any, PoisonedState(Fuse(None))),
        store,
        cast(Any, Ledger(Fuse(None))),
    )
    with pytest.raises(
        NonFiniteError, match="in the state after step 2, of which no checkpoint was written, the"
    ):
        asyncio.run(controller.run())
    newest = store.newest_intact(pytest.fail)
    assert newest is not None
    assert newest.progress.step == 1


class Publications(SyntheticFleet):
    """Records the versions that reach the workers."""

    def __init__(self) -> None:
        super().__init__(random.Random(0))
        self.versions: list[int] = []

    async def publish(self, published: PolicyVersion) -> None:
        self.versions.append(published.version)
        await super().publish(published)


@pytest.mark.parametrize(
    "where", ["learn", "objective/loss", "objective/grad_norm", "gap", "publish", "probe"]
)
def test_nothing_of_an_update_that_is_not_finite_is_kept(tmp_path: Path, where: str) -> None:
    """The workers do not get it, the last good checkpoint stays, and the batch is in the run directory."""
    config = configuration()
    config = config.model_copy(
        update={
            "directory": tmp_path,
            "tracking": config.tracking.model_copy(update={"wandb": "disabled"}),
        }
    )
    run, fleet, learner = RunDirectory(config.run_directory), Publications(), Poisoned(Fuse(None))
    learner.where = where
    source = synthetic_source(config, ROWS)
    store = CheckpointStore(run.checkpoints, 1)
    with RunConsole(config.name, config.steps) as console, Tracker(config, run, console) as tracker:
        controller = Controller(
            config,
            source,
            [source.by_id("eval/0")],
            cast(Any, fleet),
            cast(Any, learner),
            store,
            tracker,
        )
        with pytest.raises(NonFiniteError, match=r"^in step 4, the .*The run can be resumed") as refusal:
            asyncio.run(controller.run())
    assert fleet.versions == [0, 1, 2, 3]
    newest = store.newest_intact(pytest.fail)
    assert newest is not None
    assert newest.progress.step == 3
    (file,) = run.failed_batch_files
    assert str(file) in str(refusal.value)
    groups = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(groups) == config.rollout.prompts_per_step
    for group in groups:
        for response in group["responses"]:
            assert response["tokens"] == len(response["token_ids"]) == len(response["logprobs"]) > 0
    assert run.failed_batch_file(4) != file, "the next attempt has a file of its own"


class Witness(Ledger):
    """Compares the rows that are on the disk with the checkpoints, whenever a row is written."""

    def __init__(self, checkpoints: Path) -> None:
        super().__init__(Fuse(None))
        self.checkpoints = checkpoints
        self.on_disk: list[int] = []

    def sync(self) -> None:
        begun = [int(path.name.removeprefix("step-")) for path in self.checkpoints.glob("step-*")]
        assert max(begun, default=-1) <= max(self.on_disk, default=-1), "a checkpoint is ahead of its rows"
        self.on_disk = list(self.rows)


def test_rows_are_on_the_disk_before_the_checkpoint_that_follows_them(tmp_path: Path) -> None:
    config = configuration()
    source, witness = synthetic_source(config, ROWS), Witness(tmp_path)
    controller = Controller(
        config,
        source,
        [source.by_id("eval/0")],
        cast(Any, SyntheticFleet(random.Random(0))),
        cast(Any, HashingLearner(Fuse(None))),
        CheckpointStore(tmp_path, 10),
        cast(Any, witness),
    )
    asyncio.run(controller.run())
    steps = [int(path.name.removeprefix("step-")) for path in sorted(tmp_path.glob("step-*"))]
    assert len(steps) > 1
    assert witness.on_disk == list(range(steps[-1] + 1))
