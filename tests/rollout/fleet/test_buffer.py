"""The work buffer: slots, leases, extensions and the bound on staleness."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.fleet.buffer import WorkBuffer
from tests.builders import make_prompt, make_response, make_verdict

RESPONSES = make_prompt().sampling.responses


def deliver(buffer: WorkBuffer, prompt_id: str, worker: str, index: int) -> bool:
    """Deliver a response whose token is its index."""
    return buffer.deliver(worker, prompt_id, index, make_response([index]), make_verdict(index))


def deliver_all(buffer: WorkBuffer, prompt_id: str, worker: str) -> bool:
    return all(deliver(buffer, prompt_id, worker, index) for index in range(RESPONSES))


@given(
    prompts=st.integers(1, 4),
    max_staleness=st.integers(0, 3),
    slots=st.floats(0, 1),
    slowness=st.lists(st.integers(0, 20), min_size=60, max_size=60),
    losses=st.lists(st.booleans(), min_size=30, max_size=30),
    extended=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_slow_prompts_are_trained_on_before_they_are_too_stale(
    prompts: int,
    max_staleness: int,
    slots: float,
    slowness: list[int],
    losses: list[bool],
    extended: list[bool],
) -> None:
    """Prompts are leased as soon as possible and finish after `slowness` turns. In some turns all leases are lost, and
    some prompts are extended once. Batches are taken as soon as they are ready."""
    buffer = WorkBuffer(prompts, max_staleness, oversampling=1 + slots * max_staleness)
    version = admitted = trained = 0
    under: dict[str, int] = {}
    due: dict[str, int] = {}
    longer: set[str] = set()
    for turn in range(400):
        while buffer.free_slots:
            buffer.admit(make_prompt(f"train/0/{admitted}"))
            admitted += 1
        if turn < len(losses) and losses[turn]:
            for prompt_id in buffer.return_leases("rollout-0"):
                del due[prompt_id]
                if prompt_id not in longer:
                    del under[prompt_id]
        for prompt in buffer.lease("rollout-0", admitted, version):
            under.setdefault(prompt.id, version)
            due[prompt.id] = turn + slowness[int(prompt.id.split("/")[2]) % len(slowness)]
        for prompt_id in [prompt_id for prompt_id, end in due.items() if end <= turn]:
            del due[prompt_id]
            first = RESPONSES * (prompt_id in longer)
            assert all(deliver(buffer, prompt_id, "rollout-0", first + index) for index in range(RESPONSES))
            if not first and extended[int(prompt_id.split("/")[2]) % len(extended)]:
                longer.add(prompt_id)
                buffer.extend(prompt_id, RESPONSES)
        if buffer.batch_is_ready(version):
            batch = [group.prompt.id for group in buffer.take_batch(version)]
            assert all(version - under[prompt_id] <= max_staleness for prompt_id in batch)
            version += 1
            buffer.settle(batch)
            trained += len(batch)
    assert trained == version * prompts == buffer.trained_prompts
    assert version >= 400 // 42 - 1, "slow and extended prompts must not stop the run"


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


def test_the_loss_of_a_worker_loses_only_the_responses_of_an_extension() -> None:
    buffer = scored_buffer()
    buffer.extend("train/0/0", 2)
    (prompt,) = buffer.lease("rollout-0", 1, 0)
    assert (prompt.sampling.first, prompt.sampling.responses) == (2, 2)
    assert deliver(buffer, "train/0/0", "rollout-0", 3)
    assert buffer.return_leases("rollout-0") == ["train/0/0"]
    assert buffer.free_slots == 0
    assert buffer.lease("rollout-1", 1, 0) == [prompt]
    assert deliver(buffer, "train/0/0", "rollout-1", 2)
    assert buffer.scored_groups == 0
    assert deliver(buffer, "train/0/0", "rollout-1", 3)
    (group,) = buffer.take_batch(0)
    assert [response.token_ids.tolist() for response in group.responses] == [[0], [1], [2], [3]]


def test_extra_responses_are_counted_until_the_group_is_taken_or_dropped() -> None:
    for end in ("taken", "dropped"):
        buffer = scored_buffer()
        buffer.extend("train/0/0", 2)
        assert buffer.extra_responses == 2, "they are promised"
        buffer.lease("rollout-0", 1, 0)
        assert all(deliver(buffer, "train/0/0", "rollout-0", index) for index in (2, 3))
        buffer.extend("train/0/0", 1)
        assert buffer.extra_responses == 3
        buffer.lease("rollout-0", 1, 0)
        assert deliver(buffer, "train/0/0", "rollout-0", 4)
        if end == "taken":
            assert [group.extra_responses for group in buffer.take_batch(0)] == [3]
        else:
            buffer.drop("train/0/0", "all incorrect")
        assert buffer.extra_responses == 0


def test_a_batch_waits_for_an_extended_group_that_no_later_one_may_contain() -> None:
    buffer = WorkBuffer(1, max_staleness=1)
    for prompt_id in ("train/0/0", "train/0/1"):
        buffer.admit(make_prompt(prompt_id))
    buffer.lease("rollout-0", 2, version=0)
    assert all(deliver_all(buffer, id_, "rollout-0") for id_ in ("train/0/0", "train/0/1"))
    buffer.extend("train/0/0", 1)
    assert [group.prompt.id for group in buffer.take_batch(0)] == ["train/0/1"], "a later one may contain it"
    buffer.settle(["train/0/1"])
    buffer.admit(make_prompt("train/0/2"))
    buffer.lease("rollout-1", 2, version=1)  # the extension too: its first responses are older
    assert deliver_all(buffer, "train/0/2", "rollout-1")
    assert not buffer.batch_is_ready(1)
    assert deliver(buffer, "train/0/0", "rollout-1", RESPONSES)
    assert [group.prompt.id for group in buffer.take_batch(1)] == ["train/0/0"]


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
