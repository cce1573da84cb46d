"""Complete runs with rescue: the controller, the buffer and the checkpoints are real, the fleet and learner are not."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.config import RescueConfig, RunConfig
from cluster.core.types import Prompt, ScoredGroup, TrainingBatch
from cluster.run_state.checkpoints import CheckpointStore
from cluster.training.controller import Controller
from cluster.training.rescue_state import FILE_NAME
from learner.state.state_files import CheckpointError
from tests.cluster.training.rescues import ALL
from tests.cluster.training.test_resumption import (
    CUTS,
    ROWS,
    Fuse,
    HashingLearner,
    Ledger,
    configuration,
    run_until_cut,
    run_with_cuts,
)
from tests.synthetic import SyntheticFleet, synthetic_examples, synthetic_source


def rescued(rescue: dict[str, Any], **rollout: int) -> RunConfig:
    config = configuration(**rollout)
    objective = config.objective.model_copy(update={"importance_cap": 2.0})
    return config.model_copy(update={"rescue": RescueConfig(**rescue), "objective": objective, "steps": 12})


@settings(max_examples=15, deadline=None)
@given(cuts=CUTS, seed=st.integers(0, 2**16))
def test_an_interrupted_run_trains_on_the_same_tokens_as_an_uninterrupted_one(
    cuts: list[int], seed: int
) -> None:
    """The weights are a hash of all contexts, responses, log-probabilities, advantages and marks of replays."""
    config = rescued(ALL)
    ledger, weights = run_with_cuts(config, cuts, seed)
    whole, expected = run_with_cuts(config, [], seed=0)
    assert weights == expected
    assert ledger.trained == whole.trained
    for metric in ("prefixed_fraction", "replayed_fraction", "example_fraction"):
        acted = [row.get(f"rescue/{metric}", 0.0) for row in whole.history]
        assert max(acted) > 0, f"{metric} was never tested"


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("prefix_fraction", "prefixed_fraction"),
        ("replay_max_age_steps", "replayed_fraction"),
        ("examples", "example_fraction"),
    ],
)
def test_each_method_acts_alone(name: str, metric: str) -> None:
    """It changes the run, and has metrics of its own and no others."""
    ledger, weights = run_with_cuts(rescued({name: ALL[name]}), [], seed=0)
    assert weights != run_with_cuts(rescued({}), [], seed=0)[1]
    assert max(row.get(f"rescue/{metric}", 0.0) for row in ledger.history) > 0
    others = {"prefixed_fraction", "replayed_fraction", "example_fraction"} - {metric}
    assert not any(f"rescue/{other}" in row for row in ledger.history for other in others)


def test_without_rescue_a_run_has_no_metrics_and_no_file_of_it(tmp_path: Path) -> None:
    ledger = Ledger(Fuse(None))
    run_until_cut(rescued({}), tmp_path, ledger, random.Random(0), None)
    assert not any(key.startswith("rescue/") for row in ledger.history for key in row)
    assert not list(tmp_path.rglob(FILE_NAME))


@settings(max_examples=10, deadline=None)
@given(cuts=CUTS, seed=st.integers(0, 2**16), max_staleness=st.integers(1, 2))
def test_an_asynchronous_run_neither_loses_prompts_nor_trains_on_them_twice(
    cuts: list[int], seed: int, max_staleness: int
) -> None:
    """Replays are older than the samples may be, and are not counted among them."""
    ledger, _ = run_with_cuts(rescued(ALL, max_staleness=max_staleness), cuts, seed)
    assert set(Counter(ledger.trained).values()) == {1}
    assert max(ledger.staleness) <= max_staleness


class Watched(SyntheticFleet):
    """Records the prompts that are sampled for training, and those of evaluations."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.evaluated: list[Prompt] = []

    async def sample(self, prompts: Sequence[Prompt]) -> list[ScoredGroup]:
        self.evaluated += prompts
        return await super().sample(prompts)


def test_evaluations_are_never_helped(tmp_path: Path) -> None:
    config = rescued(ALL | {"examples_fraction": 1.0, "examples_fade_steps": 1000})
    fleet, source = Watched(random.Random(0)), synthetic_source(config, ROWS)
    asyncio.run(
        Controller(
            config,
            source,
            [source.by_id("eval/0")],
            cast(Any, fleet),
            cast(Any, HashingLearner(Fuse(None))),
            CheckpointStore(tmp_path, 1),
            cast(Any, Ledger(Fuse(None))),
            examples=synthetic_examples(config, ROWS),
        ).run()
    )
    assert len(fleet.evaluated) == 4
    assert all(prompt == source.by_id("eval/0") for prompt in fleet.evaluated)


class Recording(HashingLearner):
    """Keeps the batches."""

    def __init__(self) -> None:
        super().__init__(Fuse(None))
        self.batches: list[TrainingBatch] = []

    async def learn(self, mini_batches: Sequence[TrainingBatch]) -> dict[str, float]:
        self.batches += mini_batches
        return await super().learn(mini_batches)


def test_dynamic_sampling_keeps_a_group_that_a_replay_rescues(tmp_path: Path) -> None:
    """All kept groups have reward variance, and some of them through a replay alone."""
    config = rescued({"replay_max_age_steps": 4}, dynamic_sampling_limit=100)
    ledger, learner = Ledger(Fuse(None)), Recording()
    source = synthetic_source(config, ROWS)
    controller = Controller(
        config,
        source,
        [source.by_id("eval/0")],
        cast(Any, SyntheticFleet(random.Random(0))),
        cast(Any, learner),
        CheckpointStore(tmp_path, 1),
        cast(Any, ledger),
    )
    asyncio.run(controller.run())
    assert all(batch.metrics["reward/zero_variance_fraction"] == 0 for batch in learner.batches)
    replays = sum(sample.is_replay for batch in learner.batches for sample in batch.samples)
    assert replays == round(sum(row.get("rescue/replayed_fraction", 0.0) * 4 for row in ledger.history)) > 0


def test_a_damaged_state_stops_the_run_before_it_trains(tmp_path: Path) -> None:
    config = rescued(ALL)
    run_until_cut(
        config.model_copy(update={"steps": 3}), tmp_path, Ledger(Fuse(None)), random.Random(0), None
    )
    store = CheckpointStore(tmp_path, 1)
    start = store.newest_intact(pytest.fail)
    assert start is not None
    (start.path / FILE_NAME).write_bytes(b"not a tensor")
    ledger, source = Ledger(Fuse(None)), synthetic_source(config, ROWS)
    controller = Controller(
        config,
        source,
        [source.by_id("eval/0")],
        cast(Any, SyntheticFleet(random.Random(0))),
        cast(Any, HashingLearner(Fuse(None))),
        store,
        cast(Any, ledger),
        start,
    )
    with pytest.raises(CheckpointError, match="this is not the rescue state"):
        asyncio.run(controller.run())
    assert ledger.history == []
