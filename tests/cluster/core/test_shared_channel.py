"""The shared channel: members have what their rank sends, and every failure is noticed, by those whom it concerns.

Ranks and members are threads here, which map the memory as processes do. Real processes, killed ones too, are in
tests/learner/weights/test_ipc.py.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import TCPStore

from cluster.core import shared_channel
from cluster.core.peer_process import own_process
from cluster.core.shared_channel import BUFFERS, MemberChannel, ServingChannel, assign
from cluster.core.shared_memory import SharedMemory, allocate
from cluster.core.types import WeightLayout
from cluster.core.weight_buckets import BucketMemory, receive_in_buckets, send_in_buckets
from cluster.core.weight_channel import FAILURES, Arrival, ChannelSpec

ADDRESS = "127.0.0.1"
CPU = torch.device("cpu")
BUFFER_BYTES = 100
LATE_S = 30.0
"""A time within which nothing ends by its deadline."""
PIECES = tuple(torch.full((BUFFER_BYTES,), value, dtype=torch.uint8) for value in range(6))


@contextmanager
def opened_store() -> Iterator[TCPStore]:
    yield TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))


@pytest.fixture
def store() -> Iterator[TCPStore]:
    with opened_store() as opened:
        yield opened


def spec(store: TCPStore, members: int, number: int = 1, timeout_s: float = LATE_S) -> ChannelSpec:
    names = ("learner", *(f"rollout-{index}.0" for index in range(members)))
    return ChannelSpec(ADDRESS, store.port, number, 1 + members, timeout_s, names)


def memory() -> SharedMemory:
    return allocate(BUFFERS * BUFFER_BYTES, CPU)


def send(to: ChannelSpec, tensors: Sequence[torch.Tensor], rank: int = 0, ranks: int = 1) -> str:
    """Send all tensors, as the sender of a rank does. Return what failed."""
    channel = None
    provided = memory()
    try:
        channel = ServingChannel(to, rank, ranks, CPU, lambda: provided)
        for tensor in tensors:
            channel.broadcast(tensor)
        channel.finish()
    except FAILURES as failure:
        if channel is not None:
            channel.close(str(failure))
        return str(failure)
    finally:
        provided.close()
    return ""


def take(at: ChannelSpec, member: int, sizes: Sequence[int]) -> list[torch.Tensor]:
    channel = MemberChannel(at, member, CPU)
    taken = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
    try:
        for tensor in taken:
            channel.broadcast(tensor)
    finally:
        channel.close()
    return taken


def text(future: Future[Any]) -> str:
    error = future.exception()
    assert isinstance(error, FAILURES)
    assert "\n" not in str(error)
    return str(error)


sizes = st.lists(st.integers(1, 5 * BUFFER_BYTES), min_size=1, max_size=12)


@settings(max_examples=15, deadline=None)
@given(sizes=sizes, members=st.integers(1, 3), ranks=st.integers(1, 3), seed=st.integers(0, 99))
def test_every_member_has_what_the_ranks_send(sizes: list[int], members: int, ranks: int, seed: int) -> None:
    """Tensors of any size, also larger than the buffers; ranks without a member too."""
    random = torch.Generator().manual_seed(seed)
    tensors = [torch.randint(256, (size,), generator=random, dtype=torch.uint8) for size in sizes]
    with opened_store() as store, ThreadPoolExecutor(members + ranks) as threads:
        at = spec(store, members)
        taking = [threads.submit(take, at, member, sizes) for member in range(1, 1 + members)]
        sending = [threads.submit(send, at, tensors, rank, ranks) for rank in range(ranks)]
        assert [one.result() for one in sending] == [""] * ranks
        for one in taking:
            assert all(torch.equal(*pair) for pair in zip(one.result(), tensors, strict=True))


layouts = st.lists(
    st.tuples(st.sampled_from(["float32", "bfloat16", "int8"]), st.lists(st.integers(0, 9), max_size=3)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=15, deadline=None)
@given(described=layouts, capacity=st.integers(1, 400))
def test_versions_travel_in_buckets_over_one_channel(
    described: list[tuple[str, list[int]]], capacity: int
) -> None:
    layout = [
        WeightLayout(f"weight {at}", dtype, tuple(shape)) for at, (dtype, shape) in enumerate(described)
    ]
    versions = [
        {one.name: torch.full(one.shape, number, dtype=getattr(torch, one.dtype)) for one in layout}
        for number in (1, 2, 3)
    ]

    def receive(at: ChannelSpec) -> list[dict[str, torch.Tensor]]:
        channel = MemberChannel(at, 1, CPU)
        return [
            dict(receive_in_buckets(channel.broadcast, layout, BucketMemory(CPU), capacity)) for _ in versions
        ]

    with opened_store() as store, ThreadPoolExecutor(1) as threads:
        taking = threads.submit(receive, spec(store, 1))
        channel = ServingChannel(spec(store, 1), 0, 1, CPU, memory)
        for weights in versions:
            send_in_buckets(channel.broadcast, layout, weights.items(), BucketMemory(CPU), capacity)
            channel.finish()
        for found, weights in zip(taking.result(), versions, strict=True):
            assert list(found) == list(weights)
            assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_the_store_keeps_no_key_per_piece_and_none_of_earlier_channels(store: TCPStore) -> None:
    before = set(store.list_keys())
    counts = []
    with ThreadPoolExecutor(2) as threads:
        for number in (1, 2, 3):
            at = spec(store, 1, number)
            taking = threads.submit(take, at, 1, [len(piece) for piece in PIECES])
            assert send(at, PIECES) == ""
            taking.result()
            counts.append(len(set(store.list_keys()) - before))
        assert {key.split("/")[1] for key in set(store.list_keys()) - before} == {"3"}
        # A broken channel too.
        gone = spec(store, 1, 4, timeout_s=0.1)
        assert send(gone, PIECES)
        at = spec(store, 1, 5)
        taking = threads.submit(take, at, 1, [len(piece) for piece in PIECES])
        assert send(at, PIECES) == ""
        taking.result()
        assert {key.split("/")[1] for key in set(store.list_keys()) - before} == {"5"}
    assert max(counts) <= 4, "arrived, rank, served, and the farewell of the member"


def test_a_member_that_leaves_late_leaves_no_key(store: TCPStore) -> None:
    """It is still in channel 1 when its rank makes channel 2."""
    before = set(store.list_keys())

    def move(member: MemberChannel) -> None:
        member.broadcast(torch.zeros(10, dtype=torch.uint8))
        leave.wait(LATE_S)
        time.sleep(0.2)
        member.close()
        take(spec(store, 1, 2), 1, [10])

    leave = threading.Event()
    provided = memory()
    with ThreadPoolExecutor(1) as threads:
        moving = threads.submit(lambda: move(MemberChannel(spec(store, 1), 1, CPU)))
        first = ServingChannel(spec(store, 1), 0, 1, CPU, lambda: provided)
        first.broadcast(PIECES[0][:10])
        first.finish()
        first.close()
        leave.set()
        assert send(spec(store, 1, 2), [PIECES[0][:10]]) == ""
        moving.result()
    assert {key.split("/")[1] for key in set(store.list_keys()) - before} == {"2"}


def test_members_and_ranks_that_never_come_are_named_to_all_others(store: TCPStore) -> None:
    at = spec(store, 2, timeout_s=0.5)
    with ThreadPoolExecutor(1) as threads:
        present = threads.submit(take, at, 1, [10])
        failure = send(at, PIECES, rank=0, ranks=2)
        assert failure.startswith(
            "rollout-1.0 (member 2), learner rank 1 did not arrive at weight channel 1 "
        )
        assert text(present) == failure


def test_the_deadline_of_a_member_without_a_learner(store: TCPStore) -> None:
    with pytest.raises(TimeoutError, match=r"^the learner did not answer at weight channel 1 within 0\.4 s$"):
        MemberChannel(spec(store, 1, timeout_s=0.2), 1, CPU)


def test_a_member_on_a_device_without_a_rank_is_refused_at_once_and_alone(
    store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arrival(rank: int, device: torch.device) -> Arrival:
        return Arrival(rank, "node-a", "GPU-8" if rank == 2 else "GPU-7")

    monkeypatch.setattr(shared_channel, "own_arrival", arrival)
    at = spec(store, 2)
    began = time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        served, refused = (threads.submit(take, at, member, [BUFFER_BYTES]) for member in (1, 2))
        failure = send(at, PIECES[3:4])
        assert failure.startswith(
            "no learner rank shares the device of rollout-1.0 (member 2) on GPU-8 of node-a: "
        )
        assert "broadcast or pull" in failure
        assert text(refused) == failure
        assert torch.equal(served.result()[0], PIECES[3])
    assert time.monotonic() - began < LATE_S


def test_a_failing_member_fails_its_own_rank_and_no_other(store: TCPStore) -> None:
    """Member 1 leaves after one piece. Member 3, of the same rank, is told at once; member 2 completes."""
    at = spec(store, 3)
    began = time.monotonic()
    with ThreadPoolExecutor(5) as threads:
        leaving = threads.submit(take, at, 1, [BUFFER_BYTES])
        others = [threads.submit(take, at, member, [BUFFER_BYTES] * len(PIECES)) for member in (2, 3)]
        sending = [threads.submit(send, at, PIECES, rank, 2) for rank in (0, 1)]
        assert torch.equal(leaving.result()[0], PIECES[0])
        assert sending[0].result() == "rollout-0.0 (member 1) left weight channel 1"
        assert sending[1].result() == ""
        assert all(torch.equal(*pair) for pair in zip(others[0].result(), PIECES, strict=True))
        assert text(others[1]) == sending[0].result()
    assert time.monotonic() - began < LATE_S


def test_a_member_that_hangs_is_named_at_the_deadline(store: TCPStore) -> None:
    at = spec(store, 1, timeout_s=0.5)
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(MemberChannel, at, 1, CPU)
        failure = send(at, PIECES)
        assert failure == (
            "rollout-0.0 (member 1) did not copy piece 0 of weight channel 1 from learner rank 0 within 0.5 s"
        )
        # When it continues, it must not take what the buffers contain by then.
        with pytest.raises(RuntimeError, match=r"did not copy piece 0"):
            hanging.result().broadcast(torch.zeros(BUFFER_BYTES, dtype=torch.uint8))


def test_the_end_of_a_process_is_noticed_on_both_sides(
    store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank and member believe that the other one is a process that is killed here."""
    process = subprocess.Popen(["sleep", "600"])
    identity = f"{own_process().rpartition('/')[0]}/{process.pid}"
    monkeypatch.setattr(shared_channel, "own_process", lambda: identity)
    at = spec(store, 1)
    provided = memory()
    with ThreadPoolExecutor(1) as threads:
        joining = threads.submit(MemberChannel, at, 1, CPU)
        channel = ServingChannel(at, 0, 1, CPU, lambda: provided)
        member = joining.result()
    began = time.monotonic()
    process.kill()
    process.wait()
    with pytest.raises(RuntimeError, match=r"^the process of learner rank 0 ended; it did not send piece 0 "):
        member.broadcast(torch.zeros(BUFFER_BYTES, dtype=torch.uint8))
    channel.broadcast(PIECES[1])
    with pytest.raises(
        RuntimeError, match=r"^the process of rollout-0\.0 \(member 1\) ended before it copied"
    ):
        channel.finish()
    # What was sent before the end is taken nevertheless.
    taken = torch.zeros(BUFFER_BYTES, dtype=torch.uint8)
    member.broadcast(taken)
    assert torch.equal(taken, PIECES[1])
    channel.finish()
    assert time.monotonic() - began < LATE_S


def test_a_buffer_that_changes_during_a_copy_is_not_taken(
    store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rank gives up between the beginning and the end of a member's copy."""
    at = spec(store, 1)
    with ThreadPoolExecutor(1) as threads:
        joining = threads.submit(MemberChannel, at, 1, CPU)
        channel = ServingChannel(at, 0, 1, CPU, memory)
        channel.broadcast(PIECES[1])
        member = joining.result()
    monkeypatch.setattr(shared_channel, "_synchronize", lambda device: channel.close("the learner gave up"))
    with pytest.raises(RuntimeError, match=r"^the learner gave up$"):
        member.broadcast(torch.zeros(BUFFER_BYTES, dtype=torch.uint8))


def test_memory_that_cannot_be_had_or_mapped_is_told_to_the_other_side(
    store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory() -> SharedMemory:
        raise RuntimeError("out of memory")

    def unmappable(*arguments: Any) -> SharedMemory:
        raise RuntimeError("this container cannot map it")

    with ThreadPoolExecutor(1) as threads:
        at = spec(store, 1)
        member = threads.submit(take, at, 1, [10])
        with pytest.raises(RuntimeError, match=r"^out of memory$"):
            ServingChannel(at, 0, 1, CPU, no_memory)
        assert text(member) == "out of memory"

        monkeypatch.setattr(shared_channel, "open_memory", unmappable)
        at = replace(at, number=2)
        member = threads.submit(take, at, 1, [10])
        assert send(at, PIECES) == "rollout-0.0 (member 1): this container cannot map it"
        assert text(member) == "this container cannot map it"


def descriptors() -> list[str]:
    """Return what the descriptors of memory and of processes refer to. (Sockets of stores are closed later.)"""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(one for one in found if "weights" in one or "pidfd" in one)


def test_no_descriptor_of_memory_or_a_process_stays_open(store: TCPStore) -> None:
    before = descriptors()
    for number in (1, 2):
        at = spec(store, 1, number)
        provided = memory()
        with ThreadPoolExecutor(1) as threads:
            taking = threads.submit(take, at, 1, [10])
            channel = ServingChannel(at, 0, 1, CPU, lambda given=provided: given)
            channel.broadcast(PIECES[0][:10])
            channel.finish()
            assert descriptors() != before
            taking.result()
        channel.close()
        provided.close()
    assert descriptors() == before


places = st.tuples(st.sampled_from(["node-a", "node-b"]), st.sampled_from(["cpu", "GPU-1", "GPU-2"]))


@given(members=st.lists(places, max_size=8), ranks=st.lists(places, max_size=4))
def test_a_member_has_a_rank_of_its_own_device_if_there_is_one(
    members: list[tuple[str, str]], ranks: list[tuple[str, str]]
) -> None:
    arrived = [Arrival(1 + at, *place) for at, place in enumerate(members)]
    served = assign(arrived, [Arrival(rank, *place) for rank, place in enumerate(ranks)])
    assert set(served) == {one.rank for one in arrived if (one.host, one.device) in ranks}
    for one in arrived:
        if one.rank in served:
            assert ranks[served[one.rank]] == (one.host, one.device)
    for place in set(ranks):
        loads = [list(served.values()).count(rank) for rank, at in enumerate(ranks) if at == place]
        assert max(loads) - min(loads) <= 1
