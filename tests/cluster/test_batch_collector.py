"""The making of a batch: which groups are learned from, which are dropped, and that every prompt is accounted for."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.batch_collector import Batch, BatchCollector, uninformative
from cluster.contracts import Prompt, Verdict
from rollout.work_buffer import WorkBuffer
from tests.builders import make_group, make_prompt

REWARDS: dict[str, list[float | None]] = {
    "mixed": [1.0, 0.0],
    "all right": [1.0, 1.0],
    "all wrong": [0.0, 0.0],
    "not judged": [None, None],
}
KINDS = st.sampled_from(list(REWARDS))


class Run:
    """Prompts 0, 1, 2 … of given kinds, sampled by one worker that finishes them in a random order."""

    def __init__(self, kinds: Sequence[str], capacity: int, seed: int) -> None:
        self.kinds = itertools.chain(kinds, itertools.repeat("mixed"))
        self.kind_of: dict[str, str] = {}
        self.buffer = WorkBuffer(capacity)
        self.random = random.Random(seed)
        self.settled: list[str] = []

    def next_prompt(self) -> Prompt:
        prompt = make_prompt(f"train/0/{len(self.kind_of)}")
        self.kind_of[prompt.id] = next(self.kinds)
        return prompt

    def step(self, prompts: int, extra_prompts: int | None) -> Batch:
        """As the controller does it."""
        while self.buffer.free_slots:
            self.buffer.admit(self.next_prompt())
        collector = BatchCollector(self.buffer, self.next_prompt, prompts, extra_prompts)
        self.leased = [p.id for p in self.buffer.lease("rollout-0", 10**6)]
        while (batch := collector.take()) is None:
            assert not collector.has_news()
            self.leased += [p.id for p in self.buffer.lease("rollout-0", 10**6)]
            prompt_id = self.leased.pop(self.random.randrange(len(self.leased)))
            group = make_group(REWARDS[self.kind_of[prompt_id]], prompt=make_prompt(prompt_id))
            assert self.buffer.complete(group)
            assert collector.has_news()
        self.buffer.return_leases("rollout-0")
        self.buffer.settle(batch.prompt_ids)
        self.settled += [*batch.prompt_ids, *itertools.chain(*batch.dropped_ids.values())]
        return batch


def informative(run: Run, prompt_ids: Sequence[str]) -> list[str]:
    return [id_ for id_ in prompt_ids if run.kind_of[id_] == "mixed"]


@given(st.lists(KINDS, max_size=40), st.integers(1, 5), st.integers(0, 10), st.integers(0, 10**6))
def test_on_policy_a_batch_is_the_first_informative_groups_whoever_was_fastest(
    kinds: list[str], prompts: int, extra: int, seed: int
) -> None:
    """Of the first prompts + extra ones; and none of those that teach nothing is kept."""
    run = Run(kinds, capacity=prompts, seed=seed)
    first = 0
    for _ in range(3):
        batch = run.step(prompts, extra)
        admitted = list(run.kind_of)
        candidates = admitted[first : first + prompts + extra]
        assert batch.prompt_ids == informative(run, candidates)[:prompts]
        assert len(admitted) - first <= prompts + extra
        for reason, ids in batch.dropped_ids.items():
            assert {run.kind_of[id_] for id_ in ids} == {reason}
        first = len(admitted)
        assert sorted(run.settled, key=admitted.index) == admitted, "each ends trained or dropped, once"


@given(
    st.lists(KINDS, max_size=60),
    st.integers(1, 4),
    st.integers(0, 8),
    st.integers(0, 2),
    st.integers(0, 10**6),
)
def test_no_prompt_is_lost_or_ends_twice_with_stale_samples_either(
    kinds: list[str], prompts: int, extra: int, staleness: int, seed: int
) -> None:
    run = Run(kinds, capacity=(staleness + 1) * prompts, seed=seed)
    for _ in range(4):
        batch = run.step(prompts, extra)
        assert len(batch.groups) <= prompts
        assert all(run.kind_of[id_] == "mixed" for id_ in batch.prompt_ids)
        assert sum(len(ids) for ids in batch.dropped_ids.values()) == len(batch.sampled) - len(batch.groups)
        assert len(set(run.settled)) == len(run.settled)
        assert set(run.settled) | set(run.buffer.in_flight) == set(run.kind_of)
        assert not set(run.settled) & set(run.buffer.in_flight)
    assert run.buffer.trained_prompts + run.buffer.dropped_prompts.total() == len(run.settled)


@given(st.lists(KINDS, max_size=20), st.integers(1, 4), st.integers(0, 1), st.integers(0, 10**6))
def test_without_dynamic_sampling_nothing_is_dropped(
    kinds: list[str], prompts: int, staleness: int, seed: int
) -> None:
    run = Run(kinds, capacity=(staleness + 1) * prompts, seed=seed)
    for _ in range(3):
        batch = run.step(prompts, extra_prompts=None)
        assert len(batch.groups) == prompts
        assert batch.dropped == {}
        assert batch.dropped_share == 0


def test_when_nothing_is_found_the_batch_is_empty() -> None:
    run = Run(["all wrong"] * 7, capacity=4, seed=0)
    batch = run.step(prompts=4, extra_prompts=3)
    assert batch.groups == ()
    assert batch.dropped_share == 1
    assert [group.prompt.id for group in batch.sampled] == run.settled
    assert len(run.settled) == 7
    assert batch.cut(2) == [()], "one mini-batch, without groups: the optimiser takes its step"


def test_no_more_than_the_extra_prompts_are_asked_and_then_it_trains_on_what_there_is() -> None:
    run = Run(["all right", "mixed", "all wrong", "mixed", "all right", "mixed"], capacity=4, seed=0)
    batch = run.step(prompts=4, extra_prompts=1)
    assert len(run.kind_of) == 5
    assert batch.prompt_ids == ["train/0/1", "train/0/3"]
    assert batch.dropped_ids == {
        "all right": ["train/0/0", "train/0/4"],
        "all wrong": ["train/0/2"],
    } or sorted(batch.dropped_ids["all right"]) == ["train/0/0", "train/0/4"]
    assert batch.dropped_share == 3 / 5


def test_a_group_is_judged_by_its_outcomes_not_its_rewards() -> None:
    """A right answer may be given less than another, and a wrong one something for its form."""
    group = make_group([1.0, 1.0])
    shaped = (Verdict("wrong", 0.0, None, ""), Verdict("wrong", 0.2, None, "well formed"))
    assert uninformative(type(group)(group.group, shaped)) == "all wrong"
    shaped = (Verdict("right", 1.0, "4", ""), Verdict("right", 0.5, "4", "too long"))
    assert uninformative(type(group)(group.group, shaped)) == "all right"


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [
        ([1.0, 0.0], None),
        ([1.0, 1.0], "all right"),
        ([0.0, 0.0], "all wrong"),
        ([1.0, None], "all right"),  # of what is known
        ([0.0, None], "all wrong"),
        ([None, None], "not judged"),
        ([1.0, 0.0, None], None),
    ],
)
def test_why_a_group_teaches_nothing(rewards: list[float | None], reason: str | None) -> None:
    assert uninformative(make_group(rewards)) == reason


@given(st.integers(0, 20), st.integers(1, 8))
def test_mini_batches_hold_every_group_once_and_are_equally_long(groups: int, parts: int) -> None:
    batch = Batch(tuple(make_group(prompt=make_prompt(str(i))) for i in range(groups)))
    cut = batch.cut(parts)
    assert [group for part in cut for group in part] == list(batch.groups)
    assert len(cut) == max(1, min(parts, groups))
    assert max(map(len, cut)) - min(map(len, cut)) <= 1
