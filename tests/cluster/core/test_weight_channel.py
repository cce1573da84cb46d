"""The channel: what rank 0 sends is what all others have, and every failure of a member is noticed in time.

NCCL cannot run here. `LazyGroup` has the property that makes it dangerous: it connects in the first collective, and
waits there without a deadline. The tests show that the channel holds its deadline around such a group, not that
NCCL can be aborted.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed import ProcessGroupGloo, TCPStore

from cluster.core import weight_channel
from cluster.core.weight_channel import FAILURES, Arrival, ChannelSpec, WeightChannel, bounded, meet

ADDRESS = "127.0.0.1"
CPU = torch.device("cpu")
TENSORS = (torch.arange(12, dtype=torch.float32).view(3, 4), torch.ones(5, dtype=torch.bfloat16) / 3)
HANGS_S = 600.0


class LazyGroup:
    """A group that connects in its first collective, without a deadline, as NCCL does."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        self._connect = lambda: ProcessGroupGloo(store, rank, size, timedelta(seconds=HANGS_S))
        self._group: ProcessGroupGloo | None = None
        self.aborted = threading.Event()

    def broadcast(self, tensors: list[torch.Tensor], options: Any) -> Any:
        options.timeout = timedelta(seconds=HANGS_S)
        self._group = self._group or self._connect()
        return self._group.broadcast(tensors, options)

    def abort(self) -> None:
        self.aborted.set()
        if self._group is not None:
            self._group.abort()


class GroupThatCannotBeAborted(LazyGroup):
    def abort(self) -> None:
        time.sleep(HANGS_S)


BACKENDS: dict[str, Callable[..., Any] | None] = {"gloo": None, "lazy": LazyGroup}


@pytest.fixture
def store() -> TCPStore:
    return TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))


def spec(store: TCPStore, size: int, number: int = 1, timeout_s: float = 20.0) -> ChannelSpec:
    return ChannelSpec(ADDRESS, store.port, number, size, timeout_s)


def send(to: ChannelSpec, backend: Any = None) -> None:
    channel = WeightChannel(to, 0, CPU, backend)
    for tensor in TENSORS:
        channel.broadcast(tensor)
    channel.close()


def take(at: ChannelSpec, rank: int, count: int = len(TENSORS), backend: Any = None) -> list[torch.Tensor]:
    channel = WeightChannel(at, rank, CPU, backend)
    taken = [torch.zeros_like(tensor) for tensor in TENSORS[:count]]
    for tensor in taken:
        channel.broadcast(tensor)
    channel.close()
    return taken


def arrive_only(at: ChannelSpec, rank: int) -> None:
    """Arrive, as a process does that dies before it connects."""
    store = torch.distributed.PrefixStore(f"weights/{at.number}", TCPStore(ADDRESS, at.port, is_master=False))
    meet(store, at, Arrival(rank, "host", "cpu"))


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("receivers", [1, 2, 4])
def test_every_member_gets_what_rank_0_has(store: TCPStore, receivers: int, backend: Any) -> None:
    with ThreadPoolExecutor(receivers) as threads:
        for number in (1, 2):  # one channel after the other, at one store
            channel = spec(store, 1 + receivers, number)
            taking = [
                threads.submit(take, channel, rank, backend=backend) for rank in range(1, 1 + receivers)
            ]
            send(channel, backend)
            for taken in taking:
                assert all(torch.equal(*pair) for pair in zip(taken.result(), TENSORS, strict=True))


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_a_member_that_never_comes_is_named_at_the_deadline(store: TCPStore, backend: Any) -> None:
    channel = replace(spec(store, 3, timeout_s=0.5), names=("learner", "rollout-0.0", "rollout-1.0"))
    with ThreadPoolExecutor(1) as threads:
        present = threads.submit(take, channel, 1, backend=backend)
        with pytest.raises(
            TimeoutError, match=r"^rank 2 \(rollout-1\.0\) did not arrive at weight channel 1 "
        ):
            send(channel, backend)
        with pytest.raises(TimeoutError, match=r"rank 2 \(rollout-1\.0\) did not arrive"):
            present.result()


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_the_deadline_holds_if_a_member_dies_after_its_arrival(store: TCPStore, backend: Any) -> None:
    channel = spec(store, 3, timeout_s=0.5)
    with ThreadPoolExecutor(2) as threads:
        present = threads.submit(take, channel, 1, backend=backend)
        threads.submit(arrive_only, channel, 2)
        began = time.monotonic()
        with pytest.raises(FAILURES):
            send(channel, backend)
        with pytest.raises(FAILURES):
            present.result()
    assert time.monotonic() - began < 20.0, "the deadline is 0.5 s, and nothing else ends before 600 s"


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_a_member_that_leaves_in_the_middle_is_missed_by_the_others(store: TCPStore, backend: Any) -> None:
    channel = spec(store, 3, timeout_s=1.0)
    with ThreadPoolExecutor(2) as threads:
        leaving = threads.submit(take, channel, 1, 1, backend)
        staying = threads.submit(take, channel, 2, backend=backend)
        sender = WeightChannel(channel, 0, CPU, backend)
        with pytest.raises(FAILURES):
            for tensor in TENSORS * 50:  # a few may still be under way
                sender.broadcast(tensor)
        sender.close()
        assert torch.equal(leaving.result()[0], TENSORS[0])
        staying.exception()  # whether it got all is chance; it is not left waiting


def test_a_broken_channel_aborts_its_group(store: TCPStore) -> None:
    """Otherwise the kernels that NCCL has started would occupy the GPU indefinitely."""
    channel = spec(store, 2, timeout_s=0.3)
    groups: list[LazyGroup] = []

    def make_group(*arguments: Any) -> LazyGroup:
        groups.append(LazyGroup(*arguments))
        return groups[-1]

    with ThreadPoolExecutor(1) as threads:
        threads.submit(arrive_only, channel, 1)
        with pytest.raises(TimeoutError, match=r"^connecting weight channel 1 of rank 0, rank 1 took longer"):
            WeightChannel(channel, 0, CPU, make_group)
    assert groups[0].aborted.is_set()


def test_a_group_that_cannot_be_aborted_does_not_hold_its_process(store: TCPStore) -> None:
    channel = spec(store, 2, timeout_s=0.3)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(arrive_only, channel, 1)
        with pytest.raises(TimeoutError):
            WeightChannel(channel, 0, CPU, GroupThatCannotBeAborted)


def test_two_members_on_one_gpu_are_refused_before_a_group_exists(
    store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arrival(rank: int, device: torch.device) -> Arrival:
        return Arrival(rank, "node-a", ("GPU-7", "GPU-8", "GPU-7")[rank])

    def no_group(*arguments: Any) -> Any:
        pytest.fail("a group was made")

    monkeypatch.setattr(weight_channel, "own_arrival", arrival)
    channel = replace(spec(store, 3), names=("learner", "rollout-0.0", "rollout-1.0"))
    with ThreadPoolExecutor(2) as threads:
        others = [threads.submit(WeightChannel, channel, rank, CPU, no_group) for rank in (1, 2)]
        with pytest.raises(RuntimeError) as refused:
            WeightChannel(channel, 0, CPU, no_group)
        for other in others:
            assert isinstance(other.exception(), RuntimeError)
    (line,) = str(refused.value).splitlines()
    assert "rank 0 (learner) and rank 2 (rollout-1.0)" in line
    assert "GPU-7 on node-a" in line
    assert "rank 1" not in line


def test_equal_gpus_of_two_hosts_are_not_shared(store: TCPStore) -> None:
    """(A UUID is unique. Without a driver's UUID the index may stand there.)"""
    arrivals = [Arrival(0, "node-a", "0"), Arrival(1, "node-b", "0")]
    weight_channel.refuse_shared_devices(arrivals, spec(store, 2))


def test_a_result_and_an_error_pass_through_a_bounded_call() -> None:
    def fail() -> None:
        raise TimeoutError("of the work itself")

    assert bounded(lambda: 7, 5.0, "work") == 7
    with pytest.raises(TimeoutError, match=r"^of the work itself$"):
        bounded(fail, 5.0, "work")
    with pytest.raises(TimeoutError, match=r"^work took longer than 0\.01 s"):
        bounded(lambda: time.sleep(1), 0.01, "work")


def test_nccl_is_asked_for_communicators_that_can_be_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names are those of torch's type stubs. Whether NCCL then behaves so needs GPUs."""
    made: list[tuple[Any, str | None]] = []

    class FakeNccl:
        def Options(self) -> Any:
            return SimpleNamespace(config=SimpleNamespace(blocking=None), _timeout=None)

        def __call__(self, store: Any, rank: int, size: int, options: Any) -> None:
            made.append((options, os.environ.get("TORCH_NCCL_BLOCKING_WAIT")))

    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", FakeNccl(), raising=False)
    monkeypatch.delenv("TORCH_NCCL_BLOCKING_WAIT", raising=False)
    monkeypatch.setenv("TORCH_NCCL_NONBLOCKING_TIMEOUT", "")
    monkeypatch.delenv("TORCH_NCCL_NONBLOCKING_TIMEOUT")
    weight_channel._nccl(None, 0, 2, timedelta(seconds=12.5))
    ((options, blocking_wait),) = made
    assert options.config.blocking == 0
    assert options._timeout == timedelta(seconds=12.5)
    assert blocking_wait == "1"
    assert os.environ["TORCH_NCCL_NONBLOCKING_TIMEOUT"] == "13"
    assert "TORCH_NCCL_BLOCKING_WAIT" not in os.environ, "other groups of the process keep their settings"
