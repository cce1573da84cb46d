"""The link: what rank 0 sends is what all others have, and a member that is missing is noticed in time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch.distributed import TCPStore

from cluster.core.weight_channel import FAILURES, ChannelSpec, WeightChannel

ADDRESS = "127.0.0.1"
CPU = torch.device("cpu")
TENSORS = (torch.arange(12, dtype=torch.float32).view(3, 4), torch.ones(5, dtype=torch.bfloat16) / 3)


@pytest.fixture
def store() -> TCPStore:
    return TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))


def spec(store: TCPStore, size: int, number: int = 1, timeout_s: float = 20.0) -> ChannelSpec:
    return ChannelSpec(ADDRESS, store.port, number, size, timeout_s)


def send(to: ChannelSpec) -> None:
    link = WeightChannel(to, 0, CPU)
    for tensor in TENSORS:
        link.broadcast(tensor)
    link.close()


def take(at: ChannelSpec, rank: int, count: int = len(TENSORS)) -> list[torch.Tensor]:
    link = WeightChannel(at, rank, CPU)
    taken = [torch.zeros_like(tensor) for tensor in TENSORS[:count]]
    for tensor in taken:
        link.broadcast(tensor)
    link.close()
    return taken


@pytest.mark.parametrize("receivers", [1, 2, 4])
def test_everybody_gets_what_rank_0_has(store: TCPStore, receivers: int) -> None:
    with ThreadPoolExecutor(receivers) as threads:
        for number in (1, 2):  # one link after the other, at one store
            link = spec(store, 1 + receivers, number)
            taking = [threads.submit(take, link, rank) for rank in range(1, 1 + receivers)]
            send(link)
            for taken in taking:
                assert all(torch.equal(*pair) for pair in zip(taken.result(), TENSORS, strict=True))


def test_who_waits_for_one_that_does_not_come_fails_in_time(store: TCPStore) -> None:
    with pytest.raises(FAILURES):
        send(spec(store, 2, timeout_s=0.5))


def test_who_leaves_in_the_middle_is_missed_by_the_others(store: TCPStore) -> None:
    link = spec(store, 3, timeout_s=1.0)
    with ThreadPoolExecutor(2) as threads:
        leaving, staying = threads.submit(take, link, 1, 1), threads.submit(take, link, 2)
        with pytest.raises(FAILURES):
            sender = WeightChannel(link, 0, CPU)
            for tensor in TENSORS * 50:  # a few may still be under way
                sender.broadcast(tensor)
        assert torch.equal(leaving.result()[0], TENSORS[0])
        staying.exception()  # whether it got all is chance; it is not left waiting
