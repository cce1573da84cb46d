"""The sender and the engine's source of a broadcast, over gloo: the engine has what the learner published."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from datetime import timedelta

import pytest
import torch
from torch.distributed import TCPStore

from cluster.core.types import PolicyVersion, WeightLayout
from cluster.core.weight_channel import ChannelSpec
from learner.weights.broadcast import BroadcastSender
from rollout.weights.broadcast import ChannelSource

CPU = torch.device("cpu")
WEIGHTS = {
    "embedding": torch.randn(50, 7),
    **{f"layer {index}": torch.randn(3, index + 1, dtype=torch.bfloat16) for index in range(300)},
}


def version(number: int, weights: dict[str, torch.Tensor]) -> PolicyVersion:
    layout = tuple(
        WeightLayout(name, str(weight.dtype).removeprefix("torch."), tuple(weight.shape))
        for name, weight in weights.items()
    )
    return PolicyVersion(number, None, (), (), layout)


@pytest.fixture
def store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))


def test_the_engine_receives_every_version_that_the_learner_sends(store: TCPStore) -> None:
    spec = ChannelSpec("127.0.0.1", store.port, 1, 2, 20.0, ("learner", "rollout-0.0"))
    arguments = [list(value) if isinstance(value, tuple) else value for value in (*astuple(spec), 1)]
    sender, source = BroadcastSender(CPU), ChannelSource(CPU, rank=0)
    with ThreadPoolExecutor(1) as threads:
        for number in (1, 2):
            weights = {name: weight * number for name, weight in WEIGHTS.items()}
            published = version(number, weights)
            taking = threads.submit(lambda at=published: dict(source.tensors(arguments, at.layout)))
            assert sender.send(spec, published, weights) == ""
            found = taking.result()
            assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    source.close()


def test_a_member_that_is_missing_is_named_in_the_answer(store: TCPStore) -> None:
    spec = ChannelSpec("127.0.0.1", store.port, 1, 2, 0.2, ("learner", "rollout-0.0"))
    failure = BroadcastSender(CPU).send(spec, version(1, WEIGHTS), WEIGHTS)
    assert isinstance(failure, str)
    assert failure.startswith("rank 1 (rollout-0.0) did not arrive at weight channel 1")
