"""Batches under an adaptive budget, in runs whose workers finish in any order, lose leases and are interrupted."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.types import Prompt, ScoredGroup
from cluster.metrics.batch import batch_metrics, budget_metrics
from cluster.training.batch import Batch, BatchCollector, BatchNotFilledError
from cluster.training.budget import AdaptiveBudget
from rollout.fleet.buffer import WorkBuffer
from tests.builders import make_group, make_prompt, make_response, make_verdict

SIZE = make_prompt().sampling.responses
"""The number of responses that each prompt begins with."""
NEVER = 10**9


@dataclass
class Run:
    """A run in which response `first_success[i]` and all later ones of prompt i are correct. Failed verdicts are those
    of prompts with a negative number."""

    first_success: Sequence[int]
    prompts: int
    staleness: int
    extra: int
    seed: int
    limit: int | None = None
    version: int = 0
    admitted: int = 0
    batches: list[Batch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.begin()
        self.budget = AdaptiveBudget(self.extra, chunk=SIZE, max_extension=8)

    def begin(self, again: Sequence[str] = ()) -> None:
        """Start, or resume from a checkpoint: the prompts in flight are sampled again, without their extensions."""
        self.buffer = WorkBuffer(self.prompts, self.staleness)
        self.undelivered: dict[str, list[int]] = {}
        for prompt_id in again:
            self.buffer.admit(make_prompt(prompt_id))

    def next_prompt(self) -> Prompt:
        self.admitted += 1
        return make_prompt(f"train/0/{self.admitted - 1}")

    def verdict(self, prompt_id: str, index: int) -> float | None:
        success = self.first_success[int(prompt_id.rpartition("/")[2]) % len(self.first_success)]
        return None if success < 0 else float(index >= success)

    def move(self) -> None:
        """A worker takes prompts, loses them, or delivers a response."""
        move = self.random.random()
        if move < 0.05:
            for prompt_id in self.buffer.return_leases("rollout-0"):
                del self.undelivered[prompt_id]
        elif move < 0.4 or not self.undelivered:
            for prompt in self.buffer.lease("rollout-0", self.random.randint(1, 3), self.version):
                self.undelivered[prompt.id] = list(prompt.sampling.indexes)
        else:
            prompt_id = self.random.choice(list(self.undelivered))
            missing = self.undelivered[prompt_id]
            index = missing.pop(self.random.randrange(len(missing)))
            if not missing:
                del self.undelivered[prompt_id]
            response = make_response([index], version=self.version)
            verdict = make_verdict(self.verdict(prompt_id, index))
            assert self.buffer.deliver("rollout-0", prompt_id, index, response, verdict)

    def step(self) -> Batch:
        """Do one step as the controller does."""
        while self.buffer.free_slots:
            self.buffer.admit(self.next_prompt())
        collector = BatchCollector(
            self.buffer, self.next_prompt, self.version, self.prompts, self.limit, self.budget
        )
        while (batch := collector.take()) is None:
            while not collector.has_news():
                self.move()
        self.buffer.settle(batch.prompt_ids)
        self.version += 1
        self.batches.append(batch)
        return batch

    @property
    def groups(self) -> list[list[tuple[str, int]]]:
        """The ids and sizes of the groups of every batch."""
        return [[(group.prompt.id, len(group.responses)) for group in batch.groups] for batch in self.batches]


SUCCESSES = st.lists(st.sampled_from([-1, 0, 1, 2, 3, 5, 9, NEVER]), min_size=1, max_size=12)
SEED = st.integers(0, 10**6)


def assert_groups_stop(groups: Sequence[ScoredGroup]) -> None:
    """Assert that no group was extended after a success, and that responses are in order and there once."""
    for group in groups:
        size = len(group.responses)
        assert [response.token_ids.tolist() for response in group.responses] == [[i] for i in range(size)]
        first = [verdict.outcome for verdict in group.verdicts[:SIZE]]
        if group.extra_responses:
            assert set(first) == {"incorrect"}, "only groups without a correct response get more"
            before_last = max(SIZE, size // 2)  # an extension at most doubles a group
            assert {v.outcome for v in group.verdicts[:before_last]} == {"incorrect"}


@settings(deadline=None)
@given(SUCCESSES, st.integers(1, 4), st.integers(0, 2), st.integers(0, 20), SEED, st.booleans())
def test_no_batch_exceeds_the_budget_and_no_prompt_is_lost_or_too_stale(
    successes: list[int], prompts: int, staleness: int, extra: int, seed: int, resumes: bool
) -> None:
    run = Run(successes, prompts, staleness, extra, seed)
    for _ in range(4):
        batch = run.step()
        assert len(batch.groups) == prompts
        assert sum(len(group.responses) for group in batch.groups) <= prompts * SIZE + extra
        assert all(run.version - 1 - group.min_version <= staleness for group in batch.groups)
        assert_groups_stop(batch.groups)
        if resumes:
            run.begin(run.buffer.in_flight)
    trained = [prompt_id for batch in run.batches for prompt_id in batch.prompt_ids]
    assert len({*trained}) == len(trained)
    assert {*trained, *run.buffer.in_flight} == {f"train/0/{row}" for row in range(run.admitted)}


@settings(deadline=None)
@given(SUCCESSES, st.integers(1, 4), st.integers(0, 20), SEED, SEED, st.sampled_from([None, 50]))
def test_the_groups_of_an_on_policy_run_do_not_depend_on_the_speed_or_loss_of_workers(
    successes: list[int], prompts: int, extra: int, seed: int, other_seed: int, limit: int | None
) -> None:
    if limit is not None:
        successes = [*successes, 1]  # some groups have both kinds
    runs = [Run(successes, prompts, 0, extra, each, limit) for each in (seed, other_seed)]
    for run in runs:
        for _ in range(3):
            run.step()
    assert runs[0].groups == runs[1].groups
    dropped = [
        [{reason: sorted(ids) for reason, ids in batch.dropped_ids.items()} for batch in run.batches]
        for run in runs
    ]
    assert dropped[0] == dropped[1]


@settings(deadline=None)
@given(SUCCESSES, st.integers(1, 4), st.integers(0, 2), st.integers(0, 20), SEED)
def test_only_groups_that_get_no_more_are_dropped(
    successes: list[int], prompts: int, staleness: int, extra: int, seed: int
) -> None:
    """With dynamic sampling, a group of incorrect responses is dropped only when the budget is spent, and what dropped
    groups have got is spent: a step samples no more extra responses than the budget has."""
    run = Run([*successes, 1], prompts, staleness, extra, seed, limit=50)
    for _ in range(3):
        held = run.buffer.extra_responses
        batch = run.step()
        incorrect = batch.dropped.get("all incorrect", [])
        given_out = run.buffer.extra_responses + sum(group.extra_responses for group in batch.sampled) - held
        assert 0 <= given_out <= extra
        assert (
            not incorrect
            or run.buffer.extra_responses + sum(group.extra_responses for group in batch.sampled) == extra
        ), "there was something left for it"
        for reason in ("all correct", "no verdict"):
            assert not any(group.extra_responses for group in batch.dropped.get(reason, []))
        assert all(0 < group.correct < group.valid for group in batch.groups)


def test_an_extended_group_that_succeeds_is_kept() -> None:
    """Without a budget dynamic sampling would drop the first prompt, and train on the second."""
    run = Run([3, 1], prompts=1, staleness=0, extra=2, seed=0, limit=2)
    assert run.step().prompt_ids == ["train/0/0"]
    run = Run([3, 1], prompts=1, staleness=0, extra=0, seed=0, limit=2)
    assert run.step().prompt_ids == ["train/0/1"]


@given(st.integers(1, 4), st.integers(2, 4), st.integers(0, 2), st.integers(0, 3), st.integers(0, 9), SEED)
def test_a_batch_that_no_budget_can_fill_ends_the_run(
    prompts: int, limit: int, staleness: int, found: int, extra: int, seed: int
) -> None:
    found = min(found, prompts - 1)
    run = Run([1] * found + [NEVER] * 100, prompts, staleness, extra, seed, limit)
    with pytest.raises(BatchNotFilledError) as refusal:
        run.step()
    sampled = (limit + staleness) * prompts
    assert run.admitted == sampled
    assert f"only {found} were found" in str(refusal.value)
    assert f"{sampled - found} all incorrect" in str(refusal.value)


def scored_buffer(rewards: Sequence[Sequence[float]], staleness: int) -> WorkBuffer:
    """Return a buffer for batches of one group, with a scored prompt for each pair of rewards."""
    buffer = WorkBuffer(1, staleness)
    for row, pair in enumerate(rewards):
        buffer.admit(make_prompt(f"train/0/{row}"))
        buffer.lease("rollout-0", 1, 0)
        for index, reward in enumerate(pair):
            response, verdict = make_response([index]), make_verdict(reward)
            assert buffer.deliver("rollout-0", f"train/0/{row}", index, response, verdict)
    return buffer


def test_a_batch_does_not_wait_for_an_extension_if_a_later_one_may_contain_the_group() -> None:
    """The first group is extended, the budget is spent, the second group is dropped, and the third one is taken."""
    buffer = scored_buffer([(0, 0), (0, 0), (0, 1)], staleness=2)
    collector = BatchCollector(
        buffer, lambda: make_prompt("train/0/3"), 0, prompts=1, limit=2, budget=AdaptiveBudget(2, SIZE, SIZE)
    )
    batch = collector.take()
    assert batch is not None
    assert batch.prompt_ids == ["train/0/2"]
    assert batch.dropped_ids == {"all incorrect": ["train/0/1"]}
    assert buffer.in_flight == ("train/0/0", "train/0/2", "train/0/3")
    assert [prompt.sampling.first for prompt in buffer.lease("rollout-0", 2, 1)] == [SIZE, 0]


@pytest.mark.parametrize("budget", [None, AdaptiveBudget(0, SIZE, SIZE)])
def test_a_group_that_gets_no_more_is_replaced_at_once(budget: AdaptiveBudget | None) -> None:
    """The other prompt of the batch is still being sampled."""
    buffer = WorkBuffer(2)
    for row in range(2):
        buffer.admit(make_prompt(f"train/0/{row}"))
    buffer.lease("rollout-0", 2, 0)
    for index in range(SIZE):
        assert buffer.deliver("rollout-0", "train/0/0", index, make_response(), make_verdict(0.0))
    collector = BatchCollector(buffer, lambda: make_prompt("train/0/2"), 0, 2, limit=2, budget=budget)
    assert collector.take() is None
    assert buffer.in_flight == ("train/0/1", "train/0/2")


def test_an_informed_prior_decides_who_is_extended() -> None:
    """The second prompt was often solved before; the uniform prior would choose the first."""
    run = Run([NEVER, 3], prompts=2, staleness=0, extra=2, seed=0)
    assert run.step().sampled[0].extra_responses == 2
    run = Run([NEVER, 3], prompts=2, staleness=0, extra=2, seed=0)
    run.budget = AdaptiveBudget(2, SIZE, 8, prior=lambda id_: (9, 1) if id_ == "train/0/1" else (1, 9))
    assert [group.extra_responses for group in run.step().groups] == [0, 2]


def test_the_metrics_of_a_budget() -> None:
    whole = [make_group([0.0, 0.0, 0.0, 1.0], prompt=make_prompt("train/0/0"))]
    failed = [make_group([0.0] * 3, prompt=make_prompt("train/0/1"))]
    plain = [make_group([1.0, 0.0], prompt=make_prompt(f"train/0/{row}")) for row in (2, 3)]
    metrics = budget_metrics([*whole, *plain], [*whole, *plain, *failed])
    assert metrics == {
        "budget/responses": 8,
        "budget/extended_fraction": 2 / 4,
        "budget/rescued_fraction": 1 / 2,
    }
    assert budget_metrics(plain, plain) == {"budget/responses": 4, "budget/extended_fraction": 0}


def test_extensions_do_not_bias_the_reward_of_a_batch() -> None:
    """They go to the prompts that are hard, and stop with a success. The other metrics are of all responses."""
    groups = [
        make_group([0.0] * 2 + [0.0] * 6 + [1.0], prompt=make_prompt("train/0/0")),
        make_group([1.0, 1.0], prompt=make_prompt("train/0/1")),
    ]
    metrics = batch_metrics(groups, 0)
    assert metrics["reward/mean"] == metrics["reward/correct_fraction"] == 1 / 2
    longer = list(itertools.chain([make_response(9)], groups[0].responses[1:]))
    longer[-1] = make_response(100)
    extended = make_group([0.0] * 8 + [1.0], longer, make_prompt("train/0/0"))
    assert batch_metrics([extended], 0)["response_length/max"] == 100
