"""The transport `ipc` between real processes on the CPU: the engines have what the learner published, and a process
that is killed costs the others little.

On a GPU the same code runs with memory of the device; see tests/cluster/core/test_shared_memory.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from cluster.core.types import PolicyVersion, WeightLayout
from cluster.core.weight_buckets import plan_buckets
from cluster.core.weight_channel import ChannelSpec, OfferRequest
from learner.weights import ipc
from learner.weights.ipc import IpcSender, buffer_bytes
from tests.learner.weights.member_processes import Member, differences, members

pytestmark = pytest.mark.timeout(900)

CPU = torch.device("cpu")
LATE_S = 120.0
"""A deadline that no test reaches."""
PIECE_BYTES = 512
WEIGHTS = {
    "embedding": torch.randn(50, 7),
    "a scalar": torch.tensor(3.0),
    "nothing": torch.zeros(0, 4),
    "large": torch.randn(40, 50, dtype=torch.bfloat16),
    **{f"layer {index}": torch.randn(3, index + 1, dtype=torch.bfloat16) for index in range(30)},
}


def version(number: int) -> PolicyVersion:
    layout = tuple(
        WeightLayout(name, str(weight.dtype).removeprefix("torch."), tuple(weight.shape))
        for name, weight in WEIGHTS.items()
    )
    return PolicyVersion(number, None, (), (), layout)


def weights(number: int) -> dict[str, torch.Tensor]:
    return {name: weight * number for name, weight in WEIGHTS.items()}


def route(spec: ChannelSpec, member: int) -> list[Any]:
    """Return the arguments of a source, as they come through vLLM's RPC."""
    return [list(value) if isinstance(value, tuple) else value for value in (*astuple(spec), member)]


@pytest.fixture
def store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))


@pytest.fixture(scope="module")
def engines() -> Iterator[list[Member]]:
    with members(4) as started:
        yield started


def channel(store: TCPStore, number: int, count: int, timeout_s: float = LATE_S) -> ChannelSpec:
    names = ("learner", *(f"rollout-{index}.0" for index in range(count)))
    return ChannelSpec("127.0.0.1", store.port, number, 1 + count, timeout_s, names)


def begin(
    taking: Sequence[Member], spec: ChannelSpec, number: int, dies_at: Sequence[int | None] = ()
) -> None:
    for at, member in enumerate(taking):
        member.begin(route(spec, 1 + at), version(number).layout, dies_at[at] if at < len(dies_at) else None)


def test_engines_have_every_version_and_a_killed_one_is_noticed_at_once(
    engines: list[Member], store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two versions over one channel; then a member is killed in the middle, and the next channel works."""
    monkeypatch.setattr(ipc, "BUCKET_BYTES", PIECE_BYTES)
    files, keys = set(os.listdir("/dev/shm")), set(store.list_keys())
    first, _, third, replacement = engines
    (bucket,) = plan_buckets(version(1).layout)
    pieces = -(-bucket.size // PIECE_BYTES)
    assert pieces > 10
    sender = IpcSender(CPU, rank=0, ranks=1)
    three = channel(store, 1, 3)
    for number in (1, 2):
        begin(engines[:3], three, number)
        assert sender.send(three, version(number), weights(number)) == ""
        for engine in engines[:3]:
            assert differences(engine.result(), weights(number)) == []

    began = time.monotonic()
    begin(engines[:3], three, 3, dies_at=(None, 2 * pieces + 3))
    failure = sender.send(three, version(3), weights(3))
    assert isinstance(failure, str)
    assert failure.startswith("the process of rollout-1.0 (member 2) ended before it copied piece ")
    # A member that had everything already has it; the others are told.
    for engine in (first, third):
        taken = engine.result()
        assert taken == failure or differences(taken, weights(3)) == []
    assert time.monotonic() - began < LATE_S

    again = channel(store, 2, 3)
    begin([first, replacement, third], again, 4)
    assert sender.send(again, version(4), weights(4)) == ""
    for engine in (first, replacement, third):
        assert differences(engine.result(), weights(4)) == []
    left = {key.split("/")[1] for key in set(store.list_keys()) - keys}
    assert left == {"2"}
    assert len(set(store.list_keys()) - keys) <= 1 + 2 * 3, "arrivals and answers, and no key of a piece"
    assert not {name for name in set(os.listdir("/dev/shm")) - files if "weights" in name}


def test_a_member_that_never_comes_is_named_in_the_answer(store: TCPStore) -> None:
    failure = IpcSender(CPU, rank=0, ranks=1).send(channel(store, 1, 1, 0.2), version(1), weights(1))
    assert isinstance(failure, str)
    assert failure.startswith("rollout-0.0 (member 1) did not arrive at weight channel 1")


def test_only_rank_0_offers_a_version(store: TCPStore) -> None:
    """The other ranks do not even read it."""
    unread: Any = None
    assert IpcSender(CPU, rank=1, ranks=2).send(OfferRequest(), version(1), unread) == ""
    sender = IpcSender(CPU, rank=0, ranks=2)
    assert sender.publish(version(1), unread) == version(1)


def test_buffers_are_no_larger_than_the_largest_bucket() -> None:
    one = WeightLayout("one", "float32", (1000,))
    huge = WeightLayout("huge", "float32", (2**28,))
    assert buffer_bytes((one,)) == 4000
    assert buffer_bytes((one, huge)) == 64 * 2**20
    assert buffer_bytes(()) == 1
