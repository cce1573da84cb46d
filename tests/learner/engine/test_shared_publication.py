"""Two ranks under ZeRO 3 hand their weights to engines' processes: both gather together, and each serves its own.

If a member of one rank is killed, that rank reads no further, but still gathers what the other one needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig, ObjectiveConfig
from cluster.core.types import PolicyVersion
from cluster.core.weight_channel import ChannelSpec
from cluster.core.weight_transport import WEIGHT_TRANSPORTS
from learner.model.supervised import character_tokenizer
from tests.builders import tiny_model
from tests.learner.engine.rank_processes import in_ranks
from tests.learner.weights.member_processes import Member, differences, members

pytestmark = pytest.mark.timeout(1200)

RANKS = 2
SIZES = {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
GATHERED_BYTES = 40_000
"""The bytes that the ranks gather at a time, so that there are many gathers."""
PIECE_BYTES = 20_000
DEADLINE_S = 300.0
"""No part of the test waits for it."""


def learner_options(model: Path) -> LearnerOptions:
    learner = LearnerConfig.model_validate({"zero_stage": 3, "ranks": RANKS})
    return LearnerOptions(
        str(model),
        "float32",
        1.0,
        0,
        learner,
        ObjectiveConfig(),
        ((3, 1, 4),),
        1,
        transport=WEIGHT_TRANSPORTS["ipc"],
    )


def published(model: Path) -> dict[str, Any]:
    """Publish three versions in one rank. Rank 0 also starts the members. Returns the facts."""
    from learner.engine import weight_stream
    from learner.engine.deepspeed_engine import build_engine
    from learner.engine.process_setup import open_store
    from learner.engine.rank import LearnerRank
    from learner.weights import ipc

    ipc.BUCKET_BYTES = PIECE_BYTES
    divide = weight_stream.buckets
    weight_stream.buckets = lambda sources, limit: divide(sources, GATHERED_BYTES)

    me = torch.distributed.get_rank()
    options = learner_options(model)
    engine, _ = build_engine(options)
    rank = LearnerRank(me, options)
    rank._engine = engine
    rank._sender = ipc.IpcSender(engine.device)
    sources = weight_stream.published_sources(engine, options.learner)
    layout = tuple(source.layout for source in sources)
    with weight_stream.streamed_weights(engine, sources) as tensors:
        expected = {} if tensors is None else {name: tensor.clone() for name, tensor in tensors.items()}

    store = open_store("127.0.0.1") if me == 0 else None
    port: list[Any] = [None if store is None else store.port]
    torch.distributed.broadcast_object_list(port, 0)
    facts: dict[str, Any] = {"gathers": len(divide(sources, GATHERED_BYTES)), "answers": []}

    def publish(number: int, taking: Sequence[Member], dies: int | None) -> None:
        torch.distributed.barrier()  # the members are up
        names = ("learner", "rollout-0.0", "rollout-1.0")
        spec = ChannelSpec("127.0.0.1", port[0], number, 3, DEADLINE_S, names)
        for at, member in enumerate(taking):
            member.begin((*astuple(spec), 1 + at), layout, dies_at=2 if at == dies else None)
        rank._published = PolicyVersion(number, None, (), (), layout)
        facts["answers"].append(rank.send(number, spec))
        facts[f"taken {number}"] = [
            differences(member.result(), expected) for at, member in enumerate(taking) if at != dies
        ]

    if me == 0:
        with members(4) as (a, b, c, d):
            publish(1, [a, b], dies=0)
            publish(2, [c, b], dies=1)
            publish(3, [c, d], dies=None)
    else:
        for number in (1, 2, 3):
            publish(number, [], dies=None)
    facts["superseded"] = rank.send(2, None)
    return facts


def test_a_killed_member_of_one_rank_does_not_concern_the_other(tmp_path: Path) -> None:
    model = tiny_model("llama", tied=True, initializer_range=0.05, **SIZES)
    model.save_pretrained(tmp_path / "model")
    character_tokenizer("ab", ["<answer>"], 128).save_pretrained(tmp_path / "model")
    first, second = in_ranks(RANKS, tmp_path, published, tmp_path / "model")
    assert first["gathers"] > 5
    assert first["taken 1"] == first["taken 2"] == [[]], "the member of the other rank has the whole version"
    assert first["taken 3"] == [[], []]
    assert first["answers"][0].startswith(
        "the process of rollout-0.0 (member 1) ended before it copied piece 2 "
    )
    assert second["answers"][0] == ""
    assert first["answers"][1] == ""
    assert second["answers"][1].startswith(
        "the process of rollout-1.0 (member 2) ended before it copied piece 2 "
    )
    assert [first["answers"][2], second["answers"][2]] == ["", ""]
    assert first["superseded"] is second["superseded"] is None
