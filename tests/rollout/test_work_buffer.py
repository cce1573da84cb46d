"""The work buffer against a model of it: every prompt is in one place, whatever happens in whatever order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.contracts import ScoredGroup
from rollout.work_buffer import WorkBuffer
from tests.builders import make_group, make_prompt

WORKERS = ("rollout-0", "rollout-1", "rollout-2")


def group_of(prompt_id: str, worker: str) -> ScoredGroup:
    return make_group(prompt=make_prompt(prompt_id), worker=worker)


class WorkBufferModel(RuleBasedStateMachine):
    """The model is one dictionary: the place of every prompt ever admitted, in the order of admission.

    A place is "waiting", the name of the worker that generates, "scored", "learning", "trained" or "dropped".
    """

    @initialize(capacity=st.integers(1, 6))
    def begin(self, capacity: int) -> None:
        self.capacity = capacity
        self.buffer = WorkBuffer(capacity)
        self.places: dict[str, str] = {}

    def at(self, *places: str) -> list[str]:
        """Oldest admission first."""
        return [prompt_id for prompt_id, place in self.places.items() if place in places]

    @property
    def in_flight(self) -> list[str]:
        return self.at("waiting", *WORKERS, "scored", "learning")

    @rule()
    def admit(self) -> None:
        prompt = make_prompt(f"train/0/{len(self.places)}")
        if len(self.in_flight) < self.capacity:
            self.buffer.admit(prompt)
            self.places[prompt.id] = "waiting"
        else:
            with pytest.raises(ValueError, match="no free slot"):
                self.buffer.admit(prompt)

    @precondition(lambda self: 0 < len(self.in_flight) < self.capacity)
    @rule(data=st.data())
    def admit_again(self, data: Any) -> None:
        with pytest.raises(ValueError, match="in flight already"):
            self.buffer.admit(make_prompt(data.draw(st.sampled_from(self.in_flight))))

    @precondition(lambda self: self.at("waiting"))
    @rule(worker=st.sampled_from(WORKERS), limit=st.integers(0, 4))
    def lease(self, worker: str, limit: int) -> None:
        expected = self.at("waiting")[:limit]
        assert [prompt.id for prompt in self.buffer.lease(worker, limit)] == expected
        self.places |= dict.fromkeys(expected, worker)

    @rule(worker=st.sampled_from(WORKERS))
    def lose(self, worker: str) -> None:
        """A worker dies: what it had waits again, at its old place in the line."""
        lost = self.at(worker)
        assert sorted(self.buffer.return_leases(worker)) == sorted(lost)
        self.places |= dict.fromkeys(lost, "waiting")

    @precondition(lambda self: self.at(*WORKERS))
    @rule(data=st.data())
    def complete(self, data: Any) -> None:
        """A holder of a lease delivers, in no particular order."""
        prompt_id = data.draw(st.sampled_from(self.at(*WORKERS)))
        assert self.buffer.complete(group_of(prompt_id, self.places[prompt_id]))
        self.places[prompt_id] = "scored"

    @precondition(lambda self: self.places)
    @rule(worker=st.sampled_from(WORKERS), data=st.data())
    def complete_without_a_lease(self, worker: str, data: Any) -> None:
        """A result comes late, twice, or of a prompt long gone."""
        prompt_id = data.draw(st.sampled_from(list(self.places)))
        if self.places[prompt_id] != worker:
            assert not self.buffer.complete(group_of(prompt_id, worker))

    @precondition(lambda self: self.at("scored"))
    @rule(data=st.data(), reason=st.sampled_from(["stale", "zero variance"]))
    def drop(self, data: Any, reason: str) -> None:
        prompt_id = data.draw(st.sampled_from(self.at("scored")))
        before = self.buffer.dropped_prompts[reason]
        self.buffer.drop(prompt_id, reason)
        assert self.buffer.dropped_prompts[reason] == before + 1
        self.places[prompt_id] = "dropped"

    @precondition(lambda self: self.at("scored"))
    @rule(prompts=st.integers(1, 4))
    def take_batch(self, prompts: int) -> None:
        scored = self.at("scored")
        if prompts > len(scored):
            with pytest.raises(ValueError, match="scored groups were asked for"):
                self.buffer.take_batch(prompts)
            return
        taken = [group.prompt.id for group in self.buffer.take_batch(prompts)]
        assert taken == scored[:prompts], "the oldest admissions, not the fastest workers"
        self.places |= dict.fromkeys(taken, "learning")

    @precondition(lambda self: self.at("learning"))
    @rule(data=st.data())
    def settle(self, data: Any) -> None:
        learned = self.at("learning")[: data.draw(st.integers(1, 5))]
        self.buffer.settle(learned)
        self.places |= dict.fromkeys(learned, "trained")

    @invariant()
    def every_prompt_is_in_exactly_one_place(self) -> None:
        buffer = self.buffer
        assert buffer.in_flight == tuple(self.in_flight), "what a checkpoint remembers, oldest first"
        assert buffer.waiting_prompts == len(self.at("waiting"))
        assert buffer.unscored_prompts == len(self.at("waiting", *WORKERS))
        assert buffer.scored_groups == len(self.at("scored"))
        assert [group.prompt.id for group in buffer.scored] == self.at("scored")
        assert {worker: buffer.leases(worker) for worker in WORKERS} == {
            worker: len(self.at(worker)) for worker in WORKERS
        }
        assert buffer.trained_prompts == len(self.at("trained"))
        assert buffer.dropped_prompts.total() == len(self.at("dropped"))

    @invariant()
    def no_more_are_in_flight_than_there_are_slots(self) -> None:
        assert 0 <= self.buffer.free_slots == self.capacity - len(self.in_flight)


TestWorkBuffer = WorkBufferModel.TestCase
TestWorkBuffer.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def scored_buffer() -> WorkBuffer:
    """One prompt, train/0/0, scored."""
    buffer = WorkBuffer(1)
    buffer.admit(make_prompt("train/0/0"))
    buffer.lease("rollout-0", 1)
    assert buffer.complete(group_of("train/0/0", "rollout-0"))
    return buffer


def test_a_death_frees_no_slot_and_a_late_result_is_refused() -> None:
    buffer = WorkBuffer(1)
    buffer.admit(make_prompt("train/0/0"))
    buffer.lease("rollout-0", 1)
    assert buffer.return_leases("rollout-0") == ["train/0/0"]
    assert buffer.free_slots == 0
    assert not buffer.complete(group_of("train/0/0", "rollout-0"))
    assert [prompt.id for prompt in buffer.lease("rollout-1", 1)] == ["train/0/0"]
    assert not buffer.complete(group_of("train/0/0", "rollout-0"))
    assert buffer.complete(group_of("train/0/0", "rollout-1"))


def test_a_slot_is_freed_by_publication_not_by_learning() -> None:
    buffer = scored_buffer()
    buffer.take_batch(1)
    assert buffer.free_slots == 0
    buffer.settle(["train/0/0"])
    assert buffer.free_slots == 1


def test_a_prompt_ends_once() -> None:
    buffer = scored_buffer()
    with pytest.raises(KeyError):
        buffer.settle(["train/0/0"])  # it was not learned from
    buffer.take_batch(1)
    with pytest.raises(KeyError):
        buffer.drop("train/0/0", "stale")
    buffer.settle(["train/0/0"])
    with pytest.raises(KeyError):
        buffer.settle(["train/0/0"])
    assert (buffer.trained_prompts, buffer.dropped_prompts.total()) == (1, 0)


def test_a_buffer_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        WorkBuffer(0)
