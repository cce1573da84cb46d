"""An interrupted and resumed run trains on the same samples as an uninterrupted run, wherever it was interrupted.

The controller, prompt source, work buffer and checkpoint store are real. Fleet and learner are simulated; the state of
the real learner is tested in tests/integration/test_training_state.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.commands.report.page import card
from cluster.commands.report.runs import read_run
from cluster.core.config import RunConfig
from cluster.core.types import PolicyVersion, TrainingBatch
from cluster.run_state.checkpoints import CheckpointStore
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking import RunConsole, Tracker
from cluster.training.controller import Controller
from learner.state.state_files import CheckpointError, FileRecord, seal
from tests.synthetic import SyntheticFleet, expected_prompts, synthetic_examples, synthetic_source


class Cut(Exception):
    """Simulates the death of the process."""


@dataclass
class Fuse:
    """Interrupts the run after `left` ticks, or never if that is None."""

    left: int | None

    def tick(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Cut


@dataclass
class HashingLearner:
    """A learner whose weights are a hash of all training samples, in order."""

    fuse: Fuse
    weights: str = ""

    async def learn(self, mini_batches: Sequence[TrainingBatch]) -> dict[str, float]:
        self.fuse.tick()
        for batch in mini_batches:
            content = [
                (
                    row.prompt_token_ids.tolist(),
                    row.response_token_ids.tolist(),
                    row.sampler_logprobs.tolist(),
                    row.advantage,
                    row.scale,
                    row.is_replay,
                )
                for row in batch.samples
            ]
            self.weights = hashlib.sha256(f"{self.weights} {content}".encode()).hexdigest()
        return {"logprob_gap/mean": 0.0, "logprob_gap/max": 0.0, "learner_tokens": 1.0}

    async def publish(self, version: int) -> PolicyVersion:
        self.fuse.tick()
        return PolicyVersion(version, None, (), ())

    async def save(self, directory: Path) -> dict[Path, FileRecord]:
        directory.mkdir()
        self.fuse.tick()
        (directory / "weights").write_text(self.weights)
        self.fuse.tick()
        return {directory / "weights": seal(directory / "weights")}

    async def load(self, directory: Path, scratch: Path) -> None:
        self.weights = (directory / "weights").read_text()


@dataclass
class Ledger:
    """A replacement of the tracker. It keeps the rows as `metrics.jsonl` does."""

    fuse: Fuse
    rows: dict[int, list[str]] = field(default_factory=dict)
    staleness: list[float] = field(default_factory=list)
    budgets: list[dict[str, float]] = field(default_factory=list)
    """The metrics of the steps with an adaptive budget."""
    history: list[dict[str, float]] = field(default_factory=list)
    """The metrics of all rows that were ever written."""
    wandb_run_id: str | None = "abc123"
    restarts_before: float = 0.0

    def resume_from(self, step: int) -> None:
        self.rows = {row: prompts for row, prompts in self.rows.items() if row <= step}

    def log(self, step: int, metrics: dict[str, float], prompts: Sequence[str] = (), *_: Any) -> None:
        self.fuse.tick()
        assert step not in self.rows
        self.rows[step] = list(prompts)
        self.history.append(metrics)
        self.staleness.append(metrics.get("staleness/max", 0.0))
        if "budget/responses" in metrics:
            self.budgets.append(metrics)
        self.fuse.tick()

    def sync(self) -> None:
        self.fuse.tick()

    def transcripts(self, *_: Any) -> None:
        """Do nothing."""

    def evaluation(self, *_: Any) -> None:
        """Do nothing."""

    def checkpoint(self, *_: Any) -> None:
        """Do nothing."""

    @property
    def trained(self) -> list[str]:
        return [prompt for step in sorted(self.rows) for prompt in self.rows[step]]


ROWS = 7
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""A directory in memory: hundreds of checkpoints, each synchronized to the disk, would take minutes."""


def configuration(**rollout: int | None) -> RunConfig:
    return RunConfig.model_validate(
        {
            "seed": 3,
            "steps": 6,
            "rollout": {"prompts_per_step": 4, "responses_per_prompt": 2} | rollout,
            "learner": {"mini_batches": 2},
            "evaluation": {"every_steps": 4, "prompts": 1},
            "checkpoint": {"every_steps": 1, "keep": 1},
        }
    )


def run_until_cut(
    config: RunConfig,
    directory: Path,
    ledger: Ledger,
    chance: random.Random,
    ticks: int | None,
    rows: int = ROWS,
) -> tuple[bool, str]:
    """Start or resume the run. Return True if it reached its last step, and the learner's weights."""
    fuse = Fuse(ticks)
    ledger.fuse = fuse
    learner = HashingLearner(fuse)
    store = CheckpointStore(directory, config.checkpoint.keep)
    start = store.newest_intact(pytest.fail)
    ledger.resume_from(start.progress.step if start else -1)
    controller = Controller(
        config,
        synthetic_source(config, rows),
        [synthetic_source(config, rows).by_id("eval/0")],
        cast(Any, SyntheticFleet(chance, fuse.tick)),
        cast(Any, learner),
        store,
        cast(Any, ledger),
        start,
        synthetic_examples(config, ROWS),
    )
    try:
        asyncio.run(controller.run())
    except Cut:
        return False, learner.weights
    assert controller.pass_at_1[config.steps] >= 0
    return True, learner.weights


def run_with_cuts(config: RunConfig, cuts: Sequence[int], seed: int) -> tuple[Ledger, str]:
    ledger, chance = Ledger(Fuse(None)), random.Random(seed)
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as directory:
        for ticks in [*cuts, None]:
            done, weights = run_until_cut(config, Path(directory), ledger, chance, ticks)
        assert done
        assert_accounted(config, Path(directory))
    return ledger, weights


def assert_accounted(config: RunConfig, directory: Path) -> None:
    """Assert that every prompt that was handed out is trained or in flight."""
    checkpoint = CheckpointStore(directory, 1).newest_intact(pytest.fail)
    assert checkpoint is not None
    progress = checkpoint.progress
    assert progress.trained_prompts + len(progress.in_flight) == progress.position
    assert progress.wandb_run_id == "abc123"


CUTS = st.lists(st.integers(0, 150), max_size=6)


@settings(max_examples=25, deadline=None)
@given(cuts=CUTS, seed=st.integers(0, 2**16))
def test_an_interrupted_on_policy_run_trains_on_the_same_prompts_in_the_same_order(
    cuts: list[int], seed: int
) -> None:
    """Prompts, seeds and final weights do not depend on the speed or loss of workers, or on the interruptions."""
    config = configuration()
    ledger, weights = run_with_cuts(config, cuts, seed)
    expected = expected_prompts(config, ROWS, 24)
    source = synthetic_source(config, ROWS)
    assert [(prompt, source.by_id(prompt).sampling.seed) for prompt in ledger.trained] == expected
    assert weights == run_with_cuts(config, [], seed=0)[1]
    assert ledger.history[-1]["progress/responses_sampled"] == 24 * 2


@settings(max_examples=10, deadline=None)
@given(cuts=CUTS, seed=st.integers(0, 2**16), extra=st.integers(1, 6))
def test_extensions_of_an_on_policy_run_depend_neither_on_workers_nor_on_interruptions(
    cuts: list[int], seed: int, extra: int
) -> None:
    """The same groups get the same further responses, which have seeds of their own."""
    config = configuration(adaptive_budget=4 * 2 + extra)
    ledger, weights = run_with_cuts(config, cuts, seed)
    assert ledger.trained == [prompt for prompt, _ in expected_prompts(config, ROWS, 24)]
    whole, expected = run_with_cuts(config, [], seed=0)
    assert weights == expected
    assert weights != run_with_cuts(configuration(), [], seed=0)[1], "otherwise no group was extended"
    sizes = [metrics["budget/responses"] for metrics in whole.budgets]
    assert all(8 <= size <= 8 + extra for size in sizes)
    assert max(sizes) > 8
    for runs in (ledger, whole):
        assert runs.history[-1]["progress/responses_sampled"] == sum(sizes)


@settings(max_examples=25, deadline=None)
@given(
    cuts=CUTS,
    seed=st.integers(0, 2**16),
    max_staleness=st.integers(1, 2),
    budget=st.sampled_from([None, 8, 12]),
)
def test_an_asynchronous_run_neither_loses_prompts_nor_trains_on_them_twice(
    cuts: list[int], seed: int, max_staleness: int, budget: int | None
) -> None:
    """The speed of workers decides which prompts are in a batch. But each prompt occurs once per epoch, and no
    sample is too stale."""
    config = configuration(max_staleness=max_staleness, adaptive_budget=budget)
    ledger, _ = run_with_cuts(config, cuts, seed)
    trained = Counter(ledger.trained)
    assert set(trained.values()) == {1}
    capacity = 4 * (max_staleness + 1)
    in_order = [prompt for prompt, _ in expected_prompts(config, ROWS, 24 + capacity)]
    assert trained.keys() <= set(in_order)
    assert len(trained) == 24
    assert max(ledger.staleness) <= max_staleness


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), prompts_per_step=st.sampled_from([2, 6]), max_staleness=st.integers(0, 2))
def test_the_number_of_prompts_in_flight_may_change_when_a_run_is_resumed(
    seed: int, prompts_per_step: int, max_staleness: int
) -> None:
    """The size of batches changes, and the checkpoint may have more prompts in flight than the resumed run has
    slots."""
    chance, ledger = random.Random(seed), Ledger(Fuse(None))
    before = configuration(max_staleness=2).model_copy(update={"steps": 3})
    after = configuration(max_staleness=max_staleness, prompts_per_step=prompts_per_step)
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as directory:
        for config in (before, after):
            done, _ = run_until_cut(config, Path(directory), ledger, chance, None)
            assert done
        assert_accounted(after, Path(directory))
    trained = ledger.trained
    assert len(trained) == len(set(trained)) == 3 * 4 + 3 * prompts_per_step
    first = [prompt for prompt, _ in expected_prompts(before, ROWS, 12)]
    if max_staleness == 0:  # prompts in flight come before new ones
        assert set(first) <= set(trained)


def test_a_step_that_is_not_repeated_has_its_row() -> None:
    """Interrupt the run at each tick in turn, which includes the tick after a checkpoint."""
    config = configuration().model_copy(update={"steps": 2})
    for ticks in range(100):
        ledger = Ledger(Fuse(None))
        with tempfile.TemporaryDirectory(dir=IN_MEMORY) as directory:
            done, _ = run_until_cut(config, Path(directory), ledger, random.Random(0), ticks)
            start = CheckpointStore(Path(directory), 1).newest_intact(pytest.fail)
        assert start is None or start.progress.step in ledger.rows
        if done:
            return
    pytest.fail("the run never reached its last step")


def test_the_report_counts_restarts_over_all_resumptions(tmp_path: Path) -> None:
    """Each part of the run has its own fleet, which counts from 0."""
    config = configuration().model_copy(update={"directory": tmp_path})
    config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"wandb": "disabled"})})
    run = RunDirectory(config.run_directory)
    source = synthetic_source(config, ROWS)
    for steps, restarts in ((2, 2), (4, 0), (6, 1)):
        store = CheckpointStore(run.checkpoints, 1)
        start = store.newest_intact(pytest.fail)
        part = config.model_copy(update={"steps": steps})
        fleet = SyntheticFleet(random.Random(0))
        fleet.state.restarts = restarts
        console = RunConsole(config.name, steps, quiet=True)
        with Tracker(part, run, console, resume_step=start.progress.step if start else None) as tracker:
            run.write_config(part)
            controller = Controller(
                part,
                synthetic_source(config, ROWS),
                [source.by_id("eval/0")],
                cast(Any, fleet),
                cast(Any, HashingLearner(Fuse(None))),
                store,
                tracker,
                start,
            )
            asyncio.run(controller.run())
    shown = dict(card(read_run(run.path, "run"), 0).cells)
    assert shown["restarts"] == "3"


@pytest.mark.parametrize("change", [{"seed": 4}, {"rows": ROWS + 1}])
def test_changed_prompts_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    config = configuration().model_copy(update={"steps": 1})
    ledger = Ledger(Fuse(None))
    run_until_cut(config, tmp_path, ledger, random.Random(0), None)
    store = CheckpointStore(tmp_path, 1)
    changed = config.model_copy(update={"seed": change.get("seed", 3), "steps": 2})
    controller = Controller(
        changed,
        synthetic_source(changed, change.get("rows", ROWS)),
        [],
        cast(Any, SyntheticFleet(random.Random(0))),
        cast(Any, HashingLearner(Fuse(None))),
        store,
        cast(Any, ledger),
        store.newest_intact(pytest.fail),
    )
    with pytest.raises(CheckpointError, match="the training prompts have changed, because seed, task"):
        asyncio.run(controller.run())
