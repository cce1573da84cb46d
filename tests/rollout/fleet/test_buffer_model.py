"""The work buffer, compared with a model: every prompt is in one state after any sequence of operations."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rollout.fleet.buffer import WorkBuffer
from tests.builders import make_prompt
from tests.rollout.fleet.test_buffer import RESPONSES, deliver

WORKERS = ("rollout-0", "rollout-1", "rollout-2")


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
        self.scored: dict[str, int] = {}
        """The number of responses of each prompt with which it was scored last."""
        self.asked: dict[str, int] = {}
        """The number of responses that each prompt has or waits for."""

    def in_states(self, *states: str) -> list[str]:
        """Return the ids of the prompts in one of `states`, oldest admission first."""
        return [prompt_id for prompt_id, state in self.states.items() if state in states]

    def missing(self, prompt_id: str) -> range:
        """Return the indexes of the responses that were asked for since the prompt was scored last."""
        return range(self.scored.get(prompt_id, 0), self.asked[prompt_id])

    @property
    def in_flight(self) -> list[str]:
        return self.in_states("waiting", *WORKERS, "scored", "learning")

    @rule()
    def admit(self) -> None:
        prompt = make_prompt(f"train/0/{len(self.states)}")
        if len(self.in_flight) < self.capacity:
            self.buffer.admit(prompt)
            self.states[prompt.id] = "waiting"
            self.asked[prompt.id] = RESPONSES
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
        leased = self.buffer.lease(worker, limit, self.version)
        assert [prompt.id for prompt in leased] == expected
        for prompt in leased:
            assert prompt.sampling.indexes == self.missing(prompt.id), "what is scored is not sampled again"
            self.states[prompt.id] = worker
            if prompt.id not in self.scored:
                self.leased_under[prompt.id] = self.version

    @rule(worker=st.sampled_from(WORKERS))
    def lose(self, worker: str) -> None:
        """A worker dies: its prompts wait again, at their old positions."""
        lost = self.in_states(worker)
        assert sorted(self.buffer.return_leases(worker)) == sorted(lost)
        self.states |= dict.fromkeys(lost, "waiting")
        for prompt_id in lost:
            self.delivered.pop(prompt_id, None)
            if prompt_id not in self.scored:
                del self.leased_under[prompt_id]

    @precondition(lambda self: self.in_states(*WORKERS))
    @rule(data=st.data(), index=st.integers(0, RESPONSES + 1))
    def deliver(self, data: Any, index: int) -> None:
        """A holder of a lease delivers, in no particular order, and one response perhaps twice. A response that was
        not asked for is discarded, such as one that the group had before it was extended."""
        prompt_id = data.draw(st.sampled_from(self.in_states(*WORKERS)))
        asked_for = index in self.missing(prompt_id)
        assert deliver(self.buffer, prompt_id, self.states[prompt_id], index) == asked_for
        if not asked_for:
            return
        there = self.delivered.setdefault(prompt_id, set())
        there.add(index)
        if len(there) == len(self.missing(prompt_id)):
            self.score(prompt_id)

    @rule(data=st.data(), worker=st.sampled_from(WORKERS))
    def deliver_all(self, data: Any, worker: str) -> None:
        """A worker finishes a prompt."""
        if self.in_states(worker):
            prompt_id = data.draw(st.sampled_from(self.in_states(worker)))
            for index in {*self.missing(prompt_id)} - self.delivered.get(prompt_id, set()):
                assert deliver(self.buffer, prompt_id, worker, index)
            self.score(prompt_id)

    def score(self, prompt_id: str) -> None:
        """All responses that were asked for are there."""
        self.states[prompt_id] = "scored"
        self.scored[prompt_id] = self.asked[prompt_id]
        self.scorings.append(prompt_id)
        self.delivered.pop(prompt_id, None)

    @precondition(lambda self: self.in_states("scored"))
    @rule(data=st.data(), responses=st.integers(0, 2))
    def extend(self, data: Any, responses: int) -> None:
        """A scored group gets more responses: it waits again, at its old position."""
        prompt_id = data.draw(st.sampled_from(self.in_states("scored")))
        if responses == 0:
            with pytest.raises(ValueError, match="at least one response"):
                self.buffer.extend(prompt_id, responses)
            return
        offers = self.buffer.offers
        self.buffer.extend(prompt_id, responses)
        assert self.buffer.offers == offers + 1, "the fleet looks for work when this number has changed"
        self.states[prompt_id] = "waiting"
        self.asked[prompt_id] += responses

    @precondition(lambda self: self.in_states("waiting", *WORKERS, "learning"))
    @rule(data=st.data())
    def extend_what_is_not_scored(self, data: Any) -> None:
        with pytest.raises(KeyError):
            self.buffer.extend(data.draw(st.sampled_from(self.in_states("waiting", *WORKERS, "learning"))), 1)

    @precondition(lambda self: self.states)
    @rule(worker=st.sampled_from(WORKERS), data=st.data())
    def deliver_without_a_lease(self, worker: str, data: Any) -> None:
        """A response comes late, or is of a prompt long gone."""
        prompt_id = data.draw(st.sampled_from(list(self.states)))
        if self.states[prompt_id] != worker:
            assert not deliver(self.buffer, prompt_id, worker, self.asked[prompt_id] - 1)

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
        coming = self.buffer.next_batch(self.version)
        groups = self.buffer.take_batch(self.version)
        assert coming == groups
        taken = [group.prompt.id for group in groups]
        assert taken == scored[: self.prompts], "the oldest leases and admissions, not the fastest workers"
        assert all(self.version - self.leased_under[id_] <= self.max_staleness for id_ in taken), (
            "the hard bound"
        )
        for group in groups:
            size = self.asked[group.prompt.id]
            assert [response.token_ids.tolist() for response in group.responses] == [[i] for i in range(size)]
            assert [verdict.reward for verdict in group.verdicts] == list(range(size))
            assert group.extra_responses == size - RESPONSES
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
    def a_batch_is_ready_when_it_leaves_no_more_than_the_next_ones_can_take(self) -> None:
        unfinished = [
            self.leased_under[id_]
            for id_ in self.in_states("waiting", *WORKERS)
            if id_ in self.leased_under  # the others may be leased under a later version
        ]
        oldest = self.version - self.max_staleness
        assert self.buffer.batch_is_ready(self.version) == (
            len(self.in_states("scored")) >= self.prompts
            and all(
                sum(leased <= oldest + k for leased in unfinished) <= k * self.prompts
                for k in range(self.max_staleness)
            )
        )

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
            left = [
                id_
                for id_ in self.in_states("waiting", *WORKERS, "scored")
                if id_ in self.leased_under and self.leased_under[id_] <= oldest + k
            ]
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
        assert buffer.extra_responses == sum(
            self.asked[id_] - RESPONSES for id_ in self.in_states("waiting", *WORKERS, "scored")
        )
        fresh = 0  # the newest that are all there still
        while fresh < len(self.scorings) and self.is_scored_since(fresh):
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

    def is_scored_since(self, fresh: int) -> bool:
        """Return True if the scoring number −1 − `fresh` is the last one of its prompt, which is scored still."""
        *_, prompt_id = self.scorings[: len(self.scorings) - fresh]
        later = self.scorings[len(self.scorings) - fresh :]
        return self.states[prompt_id] == "scored" and prompt_id not in later

    @invariant()
    def no_more_are_in_flight_than_there_are_slots(self) -> None:
        assert 0 <= self.buffer.free_slots == self.capacity - len(self.in_flight)


TestWorkBuffer = WorkBufferModel.TestCase
TestWorkBuffer.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
