"""Informative selection in a run: its ids, its evidence, its resumption, and its metrics."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.config import RunConfig
from cluster.core.types import Verdict
from cluster.run_state.checkpoints import Checkpoint, CheckpointStore
from cluster.training.batch import Batch
from cluster.training.informative import InformativeSource, evidence, refuse_other_selection
from cluster.training.selection import PRIOR
from learner.state.state_files import CheckpointError
from tests.builders import make_group, make_progress
from tests.cluster.training.test_resumption import (
    CUTS,
    IN_MEMORY,
    Fuse,
    Ledger,
    configuration,
    run_until_cut,
)
from tests.synthetic import synthetic_source

ROWS = 20
DYNAMIC = {"dynamic_sampling_limit": 4, "responses_per_prompt": 3}
METRICS = {
    "selection/expected_signal",
    "selection/repeated_fraction",
    "selection/prompts_seen_fraction",
    "selection/trained_max",
}


def informative(**rollout: int) -> RunConfig:
    config = configuration(**rollout)
    return config.model_copy(update={"task": config.task.model_copy(update={"selection": "informative"})})


def new_source(rows: int = ROWS) -> InformativeSource:
    source = synthetic_source(informative(), rows)
    assert isinstance(source, InformativeSource)
    return source


@dataclass
class MeasuredLedger(Ledger):
    """Keeps the metrics of each row and the ids of dropped prompts as well."""

    metrics: list[dict[str, float]] = field(default_factory=list)
    dropped: dict[int, list[str]] = field(default_factory=dict)

    def resume_from(self, step: int) -> None:
        super().resume_from(step)
        self.dropped = {row: prompts for row, prompts in self.dropped.items() if row <= step}

    def log(self, step: int, metrics: dict[str, float], prompts: Sequence[str] = (), *rest: Any) -> None:
        super().log(step, metrics, prompts)
        self.metrics.append(metrics)
        self.dropped[step] = [prompt for ids in rest[0].values() for prompt in ids]


def run_with_cuts(config: RunConfig, cuts: Sequence[int], seed: int) -> tuple[MeasuredLedger, str]:
    ledger, chance = MeasuredLedger(Fuse(None)), random.Random(seed)
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as directory:
        for ticks in [*cuts, None]:
            done, weights = run_until_cut(config, Path(directory), ledger, chance, ticks, rows=ROWS)
        assert done
        assert_ledger(Path(directory), ledger)
    return ledger, weights


def assert_ledger(directory: Path, ledger: MeasuredLedger) -> None:
    """Assert that the counts in the checkpoint are those of the ledger, prompt by prompt."""
    checkpoint = CheckpointStore(directory, 1).newest_intact(pytest.fail)
    assert checkpoint is not None
    state, progress = checkpoint.selection, checkpoint.progress
    assert state is not None
    dropped = [prompt for step in ledger.dropped for prompt in ledger.dropped[step]]
    handed_out = [*ledger.trained, *dropped, *progress.in_flight]
    assert len(handed_out) == len(set(handed_out)) == progress.position
    for counts, prompts in (
        (state.trained, ledger.trained),
        (state.dropped, dropped),
        (state.in_flight, progress.in_flight),
    ):
        rows = Counter(int(prompt.split("/")[2]) for prompt in prompts)
        assert {row: count for row, count in enumerate(counts.tolist()) if count} == rows
    for row, drawn in enumerate(state.drawn.tolist()):  # each visit of a row has its own id
        visits = [int(prompt.split("/")[1]) for prompt in handed_out if int(prompt.split("/")[2]) == row]
        assert sorted(visits) == list(range(drawn))


@pytest.mark.parametrize("rollout", [{}, DYNAMIC], ids=["plain", "dynamic sampling"])
@settings(max_examples=15, deadline=None)
@given(cuts=CUTS, seed=st.integers(0, 2**16))
def test_an_on_policy_run_depends_neither_on_interruptions_nor_on_the_speed_of_workers(
    rollout: dict[str, int], cuts: list[int], seed: int
) -> None:
    config = informative(**rollout)
    ledger, weights = run_with_cuts(config, cuts, seed)
    undisturbed, expected = run_with_cuts(config, [], seed=0)
    assert ledger.rows == undisturbed.rows
    assert {step: set(ids) for step, ids in ledger.dropped.items()} == {
        step: set(ids) for step, ids in undisturbed.dropped.items()
    }
    assert weights == expected


@settings(max_examples=15, deadline=None)
@given(cuts=CUTS, seed=st.integers(0, 2**16), dynamic=st.booleans())
def test_an_asynchronous_run_accounts_for_every_draw(cuts: list[int], seed: int, dynamic: bool) -> None:
    ledger, _ = run_with_cuts(informative(max_staleness=1, **(DYNAMIC if dynamic else {})), cuts, seed)
    assert len(ledger.trained) == 24
    assert max(ledger.staleness) <= 1


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), prompts_per_step=st.sampled_from([2, 6]), max_staleness=st.integers(0, 1))
def test_the_number_of_prompts_in_flight_may_change_when_a_run_is_resumed(
    seed: int, prompts_per_step: int, max_staleness: int
) -> None:
    chance, ledger = random.Random(seed), MeasuredLedger(Fuse(None))
    before = informative(max_staleness=2).model_copy(update={"steps": 3})
    after = informative(max_staleness=max_staleness, prompts_per_step=prompts_per_step)
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as directory:
        for config in (before, after):
            done, _ = run_until_cut(config, Path(directory), ledger, chance, None, rows=ROWS)
            assert done
        assert_ledger(Path(directory), ledger)


def test_only_an_informative_run_logs_the_metrics_of_the_selection() -> None:
    ledger, _ = run_with_cuts(informative(), [], seed=0)
    assert all(metrics.keys() >= METRICS for metrics in ledger.metrics[1:])
    assert not METRICS & ledger.metrics[0].keys()
    last = ledger.metrics[-1]
    rows = Counter(prompt.split("/")[2] for prompt in ledger.trained)
    assert last["selection/trained_max"] == max(rows.values())
    assert last["selection/prompts_seen_fraction"] == len(rows) / ROWS
    assert last["progress/epoch"] == 24 // ROWS
    batches = [ledger.rows[step] for step in sorted(ledger.rows)[1:]]
    for metrics, batch in zip(ledger.metrics[1:], batches, strict=True):
        repeated = sum(not prompt.startswith("train/0/") for prompt in batch) / len(batch)
        assert metrics["selection/repeated_fraction"] == repeated
    uniform = MeasuredLedger(Fuse(None))
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as directory:
        run_until_cut(configuration(), Path(directory), uniform, random.Random(0), None)
    assert not any(METRICS & metrics.keys() for metrics in uniform.metrics)


def test_prompts_that_are_solved_sometimes_come_more_often() -> None:
    """Rows 0 to 4 are solved by half of the responses, the others never. No prompt is left out."""
    source = new_source()
    drawn: Counter[int] = Counter()
    for _ in range(520):
        prompts = [source.next() for _ in range(4)]
        groups = []
        for prompt in prompts:
            row = int(prompt.id.split("/")[2])
            drawn[row] += 1
            groups.append(make_group((1.0, 0.0) * 8 if row < 5 else (0.0,) * 16, prompt=prompt))
        metrics = source.observe(Batch(tuple(groups)))
    assert min(drawn[row] for row in range(5)) > 2 * max(drawn[row] for row in range(5, ROWS))
    assert len(drawn) == ROWS
    assert metrics["selection/prompts_seen_fraction"] == 1.0


def test_the_prior_of_a_prompt_is_what_its_row_has_shown() -> None:
    source = new_source(rows=1)
    first = source.next()
    assert source.prior(first.id) == PRIOR
    source.observe(Batch((make_group((1.0, 0.0, 0.0), prompt=first),)))
    second = source.next()
    assert (first.id, second.id) == ("train/0/0", "train/1/0")
    assert source.prior(second.id) == (2.0, 3.0)
    assert synthetic_source(configuration(), 1).prior("train/0/0") == PRIOR


def test_failed_verifiers_give_no_evidence_and_limits_count_as_incorrect() -> None:
    group = make_group((1.0, None, 0.0, None))
    assert evidence(group) == (0, 1, 1)
    limited = type(group)(group.group, (*group.verdicts[:3], Verdict("limit", 0.0, None, "too slow")))
    assert evidence(limited) == (0, 1, 2)


def test_prompts_that_were_dropped_are_observed() -> None:
    source = new_source(rows=2)
    kept, dropped = source.next(), source.next()
    batch = Batch(
        (make_group((1.0, 0.0), prompt=kept),), {"all incorrect": [make_group((0.0, 0.0), prompt=dropped)]}
    )
    source.observe(batch)
    assert source.prior(kept.id) == (2.0, 2.0)
    assert source.prior(dropped.id) == (1.0, 3.0)
    assert source.selection.trained.sum() == source.selection.dropped.sum() == 1
    assert not source.selection.in_flight.any()


def test_prompts_in_flight_come_first_after_a_resumption() -> None:
    source = new_source()
    ids = [source.next().id for _ in range(5)]
    progress = make_progress(1, position=source.position, in_flight=tuple(ids))
    resumed = new_source()
    resumed.resume(Checkpoint(Path("step-000001"), progress, source.selection))
    assert [resumed.next().id for _ in range(3)] == ids[:3]
    assert resumed.coming_again == tuple(ids[3:])
    assert [resumed.next().id for _ in range(4)] == [*ids[3:], *(source.next().id for _ in range(2))]
    assert resumed.by_id(ids[0]) == source.by_id(ids[0])


@pytest.mark.parametrize("saved", ["uniform", "informative"])
def test_a_checkpoint_of_another_selection_is_refused(saved: str) -> None:
    state = new_source().selection if saved == "informative" else None
    checkpoint = Checkpoint(Path("step-000001"), make_progress(1), state)
    refuse_other_selection(checkpoint, saved)  # type: ignore[arg-type]
    other = "uniform" if saved == "informative" else "informative"
    with pytest.raises(CheckpointError, match=f"task.selection: {saved}, and it is {other} now; set it back"):
        refuse_other_selection(checkpoint, other)  # type: ignore[arg-type]


def test_the_state_of_other_prompts_is_refused() -> None:
    checkpoint = Checkpoint(Path("step-000001"), make_progress(1), new_source(rows=3).selection)
    with pytest.raises(CheckpointError, match="its selection has 3 training prompts, and the run has 20"):
        new_source().resume(checkpoint)


def test_a_source_does_not_share_its_state() -> None:
    """A draw changes neither what a checkpoint stores, which a thread writes, nor the checkpoint that was resumed."""
    source, resumed = new_source(), new_source()
    saved = source.selection
    resumed.resume(Checkpoint(Path("step-000001"), make_progress(1), saved))
    source.next()
    resumed.next()
    assert saved.drawn.sum() == 0
    assert source.selection.drawn.sum() == resumed.selection.drawn.sum() == 1
