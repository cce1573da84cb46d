"""The work buffer, compared with a model: every prompt is in one state after any sequence of operations."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rollout.fleet.buffer import WorkBuffer
from tests.builders import make_prompt, make_response, make_verdict

WORKERS = ("rollout-0", "rollout-1", "rollout-2")


RESPONSES = make_prompt().sampling.responses


def deliver(buffer: WorkBuffer, prompt_id: str, worker: str, index: int) -> bool:
    """Deliver a response whose token is its index."""
    return buffer.deliver(worker, prompt_id, index, make_response([index]), make_verdict(index))


def deliver_all(buffer: WorkBuffer, prompt_id: str, worker: str) -> bool:
    return all(deliver(buffer, prompt_id, worker, index) for index in range(RESPONSES))


class WorkBufferModel(RuleBasedStateMachine):
    """The model is a dictionary with the state of every admitted prompt, in the order of admission.

    A state is "waiting", the name of the worker that generates, "scored", "learning", "trained" or "dropped".
    """

    @initialize(prompts=st.integers(1, 4), max_staleness=st.integers(0, 3), data=st.data())
    def begin(self, prompts: int, max_staleness: int, data: Any) -> None:
        self.prompts, self.max_staleness = prompts, max_staleness
        self.capacity = data.draw(st.integers(prompts, prompts * (max_staleness + 1)))
        self.buffer = WorkBuffer(prompts, max_staleness, self.capacity / prompts)
        self.version = 0
        self.leased_under: dict[str, int] = {}
        self.states: dict[str, str] = {}
        self.scorings: list[str] = []
        """The ids of all scored prompts, in the order of scoring."""
        self.delivered: dict[str, set[int]] = {}
        """The indexes of the delivered responses of each generating prompt."""

    def in_states(self, *states: str) -> list[str]:
        """Return the ids of the prompts in one of `states`, oldest admission first."""
        return [prompt_id for prompt_id, state in self.states.items() if state in states]

    @property
    def in_flight(self) -> list[str]:
        return self.in_states("waiting", *WORKERS, "scored", "learning")

    @rule()
    def admit(self) -> None:
        prompt = make_prompt(f"train/0/{len(self.states)}")
        if len(self.in_flight) < self.capacity:
            self.buffer.admit(prompt)
            self.states[prompt.id] = "waiting"
        else:
            with pytest.raises(ValueError, match="no free slot"):
                self.buffer.admit(prompt)

    @precondition(lambda self: 0 < len(self.in_flight) < self.capacity)
    @rule(data=st.data())
    def admit_again(self, data: Any) -> None:
        with pytest.raises(ValueError, match="in flight already"):
            self.buffer.admit(make_prompt(data.draw(st.sampled_from(self.in_flight))))

    @precondition(lambda self: self.in_states("waiting"))
    @rule(worker=st.sampled_from(WORKERS), limit=st.integers(0, 4))
    def lease(self, worker: str, limit: int) -> None:
        expected = self.in_states("waiting")[:limit]
        assert [prompt.id for prompt in self.buffer.lease(worker, limit, self.version)] == expected
        self.states |= dict.fromkeys(expected, worker)
        self.leased_under |= dict.fromkeys(expected, self.version)

    @rule(worker=st.sampled_from(WORKERS))
    def lose(self, worker: str) -> None:
        """A worker dies: its prompts wait again, at their old positions."""
        lost = self.in_states(worker)
        assert sorted(self.buffer.return_leases(worker)) == sorted(lost)
        self.states |= dict.fromkeys(lost, "waiting")
        for prompt_id in lost:
            self.delivered.pop(prompt_id, None)

    @precondition(lambda self: self.in_states(*WORKERS))
    @rule(data=st.data(), index=st.integers(0, RESPONSES - 1))
    def deliver(self, data: Any, index: int) -> None:
        """A holder of a lease delivers, in no particular order, and one response perhaps twice."""
        prompt_id = data.draw(st.sampled_from(self.in_states(*WORKERS)))
        assert deliver(self.buffer, prompt_id, self.states[prompt_id], index)
        there = self.delivered.setdefault(prompt_id, set())
        there.add(index)
        if len(there) == RESPONSES:
            self.states[prompt_id] = "scored"
            self.scorings.append(prompt_id)
            del self.delivered[prompt_id]

    @precondition(lambda self: self.states)
    @rule(worker=st.sampled_from(WORKERS), data=st.data())
    def deliver_without_a_lease(self, worker: str, data: Any) -> None:
        """A response comes late, or is of a prompt long gone."""
        prompt_id = data.draw(st.sampled_from(list(self.states)))
        if self.states[prompt_id] != worker:
            assert not deliver(self.buffer, prompt_id, worker, 0)

    @precondition(lambda self: self.in_states("scored"))
    @rule(data=st.data(), reason=st.sampled_from(["stale", "zero variance"]))
    def drop(self, data: Any, reason: str) -> None:
        prompt_id = data.draw(st.sampled_from(self.in_states("scored")))
        before = self.buffer.dropped_prompts.get(reason, 0)
        self.buffer.drop(prompt_id, reason)
        assert self.buffer.dropped_prompts.get(reason, 0) == before + 1
        self.states[prompt_id] = "dropped"

    @precondition(lambda self: not self.in_states("learning"))
    @rule()
    def take_batch(self) -> None:
        if not self.buffer.batch_is_ready(self.version):
            with pytest.raises(ValueError, match="groups are scored"):
                self.buffer.take_batch(self.version)
            return
        scored = sorted(self.in_states("scored"), key=self.leased_under.__getitem__)
        groups = self.buffer.take_batch(self.version)
        taken = [group.prompt.id for group in groups]
        assert taken == scored[: self.prompts], "the oldest leases and admissions, not the fastest workers"
        assert all(self.version - self.leased_under[id_] <= self.max_staleness for id_ in taken), (
            "the hard bound"
        )
        for group in groups:
            assert [response.token_ids.tolist() for response in group.responses] == [
                [i] for i in range(RESPONSES)
            ]
            assert [verdict.reward for verdict in group.verdicts] == list(range(RESPONSES))
        self.states |= dict.fromkeys(taken, "learning")

    @precondition(lambda self: self.in_states("learning"))
    @rule()
    def settle(self) -> None:
        """The weights learned from the batch were published."""
        self.version += 1
        learned = self.in_states("learning")
        self.buffer.settle(learned)
        self.states |= dict.fromkeys(learned, "trained")

    @invariant()
    def no_batch_waits_indefinitely(self) -> None:
        """When all that is in flight is scored, a full buffer has a batch."""
        if self.in_states("scored") == self.in_flight and len(self.in_flight) == self.capacity:
            assert self.buffer.batch_is_ready(self.version)

    @invariant()
    def nothing_in_flight_can_become_too_old(self) -> None:
        """Prompts leased under a version fit into the batches that may still contain them."""
        for k in range(self.max_staleness + 1):
            oldest = self.version - self.max_staleness
            left = [id_ for id_ in self.in_states(*WORKERS, "scored") if self.leased_under[id_] <= oldest + k]
            batches = k + 1 - bool(self.in_states("learning"))
            assert len(left) <= batches * self.prompts

    @invariant()
    def every_prompt_is_in_exactly_one_place(self) -> None:
        buffer = self.buffer
        assert buffer.in_flight == tuple(self.in_flight), "what a checkpoint remembers, oldest first"
        assert buffer.waiting_prompts == len(self.in_states("waiting"))
        assert buffer.unscored_prompts == len(self.in_states("waiting", *WORKERS))
        assert buffer.scored_groups == len(self.in_states("scored"))
        assert buffer.ever_scored == len(self.scorings)
        assert buffer.admissions == len(self.states)
        fresh = 0  # the newest that are all there still
        while fresh < len(self.scorings) and self.states[self.scorings[-1 - fresh]] == "scored":
            fresh += 1
        for count in range(fresh + 1):
            groups = buffer.scored_since(buffer.ever_scored - count)
            newest = set(self.scorings[len(self.scorings) - count :])
            assert [group.prompt.id for group in groups] == [id_ for id_ in self.states if id_ in newest]
        assert {worker: buffer.leases(worker) for worker in WORKERS} == {
            worker: len(self.in_states(worker)) for worker in WORKERS
        }
        assert buffer.trained_prompts == len(self.in_states("trained"))
        assert sum(buffer.dropped_prompts.values()) == len(self.in_states("dropped"))

    @invariant()
    def no_more_are_in_flight_than_there_are_slots(self) -> None:
        assert 0 <= self.buffer.free_slots == self.capacity - len(self.in_flight)


TestWorkBuffer = WorkBufferModel.TestCase
TestWorkBuffer.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


@given(
    prompts=st.integers(1, 4),
    max_staleness=st.integers(0, 3),
    slots=st.floats(0, 1),
    slowness=st.lists(st.integers(0, 20), min_size=60, max_size=60),
    losses=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_slow_prompts_are_trained_on_before_they_are_too_stale(
    prompts: int, max_staleness: int, slots: float, slowness: list[int], losses: list[bool]
) -> None:
    """Prompts are leased as soon as possible and finish after `slowness` turns. In some turns all leases are lost.
    Batches are taken as soon as they are ready."""
    buffer = WorkBuffer(prompts, max_staleness, oversampling=1 + slots * max_staleness)
    version = admitted = trained = 0
    under: dict[str, int] = {}
    due: dict[str, int] = {}
    for turn in range(400):
        while buffer.free_slots:
            buffer.admit(make_prompt(f"train/0/{admitted}"))
            admitted += 1
        if turn < len(losses) and losses[turn]:
            for prompt_id in buffer.return_leases("rollout-0"):
                del due[prompt_id]
        for prompt in buffer.lease("rollout-0", admitted, version):
            under[prompt.id] = version
            due[prompt.id] = turn + slowness[int(prompt.id.split("/")[2]) % len(slowness)]
        for prompt_id in [prompt_id for prompt_id, end in due.items() if end <= turn]:
            del due[prompt_id]
            assert deliver_all(buffer, prompt_id, "rollout-0")
        if buffer.batch_is_ready(version):
            batch = [group.prompt.id for group in buffer.take_batch(version)]
            assert all(version - under[prompt_id] <= max_staleness for prompt_id in batch)
            version += 1
            buffer.settle(batch)
            trained += len(batch)
    assert trained == version * prompts == buffer.trained_prompts
    assert version >= 400 // 21 - 1, "slow prompts must not stop the run"


def scored_buffer() -> WorkBuffer:
    """Return a buffer with one scored prompt, train/0/0."""
    buffer = WorkBuffer(1)
    buffer.admit(make_prompt("train/0/0"))
    buffer.lease("rollout-0", 1, 0)
    assert deliver_all(buffer, "train/0/0", "rollout-0")
    return buffer


def test_a_lost_worker_frees_no_slot_and_its_late_responses_are_discarded() -> None:
    buffer = WorkBuffer(1)
    buffer.admit(make_prompt("train/0/0"))
    buffer.lease("rollout-0", 1, 0)
    assert deliver(buffer, "train/0/0", "rollout-0", 0)
    assert buffer.return_leases("rollout-0") == ["train/0/0"]
    assert buffer.free_slots == 0
    assert not deliver(buffer, "train/0/0", "rollout-0", 1)
    assert [prompt.id for prompt in buffer.lease("rollout-1", 1, 0)] == ["train/0/0"]
    assert not deliver(buffer, "train/0/0", "rollout-0", 1)
    assert deliver_all(buffer, "train/0/0", "rollout-1")


def test_a_slot_is_freed_by_settling_and_not_by_taking_a_batch() -> None:
    buffer = scored_buffer()
    buffer.take_batch(0)
    assert buffer.free_slots == 0
    buffer.settle(["train/0/0"])
    assert buffer.free_slots == 1


def test_a_prompt_is_settled_or_dropped_once() -> None:
    buffer = scored_buffer()
    with pytest.raises(KeyError):
        buffer.settle(["train/0/0"])  # it is in no batch yet
    buffer.take_batch(0)
    with pytest.raises(KeyError):
        buffer.drop("train/0/0", "stale")
    buffer.settle(["train/0/0"])
    with pytest.raises(KeyError):
        buffer.settle(["train/0/0"])
    assert (buffer.trained_prompts, sum(buffer.dropped_prompts.values())) == (1, 0)


def test_a_buffer_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        WorkBuffer(0)
    with pytest.raises(ValueError, match="expected from 1 to max_staleness"):
        WorkBuffer(2, max_staleness=1, oversampling=2.5)


def test_with_oversampling_slow_prompts_are_left_to_the_next_batch() -> None:
    buffer = WorkBuffer(4, max_staleness=1, oversampling=1.25)
    ids = [f"train/0/{row}" for row in range(5)]
    for prompt_id in ids:
        buffer.admit(make_prompt(prompt_id))
    assert buffer.free_slots == 0
    buffer.lease("rollout-0", 5, version=0)
    for prompt_id in ids[1:]:
        assert deliver_all(buffer, prompt_id, "rollout-0")
    assert [group.prompt.id for group in buffer.take_batch(0)] == ids[1:], (
        "the batch must not wait for the slow prompt"
    )
    buffer.settle(ids[1:])
    assert buffer.free_slots == 4, "the slow prompt keeps its slot"
    new = [f"train/0/{row}" for row in range(5, 9)]
    for prompt_id in new:
        buffer.admit(make_prompt(prompt_id))
    buffer.lease("rollout-0", 4, version=1)
    assert all(deliver_all(buffer, prompt_id, "rollout-0") for prompt_id in new)
    assert not buffer.batch_is_ready(1), "the slow prompt would be too stale in a later batch"
    assert deliver_all(buffer, ids[0], "rollout-0")
    assert [group.prompt.id for group in buffer.take_batch(1)] == [ids[0], *new[:3]]
