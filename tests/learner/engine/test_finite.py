"""NaN and infinity on one rank alone stop all ranks, with every ZeRO stage and data type."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig, ObjectiveConfig
from cluster.core.types import TrainingSample
from learner.engine.finite import NonFiniteError, refuse_non_finite_step
from learner.model.supervised import character_tokenizer
from tests.builders import tiny_model
from tests.learner.engine.rank_processes import in_ranks

RANKS = 2
STAGES = [(dtype, stage) for dtype in ("float32", "bfloat16") for stage in range(4)]


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_or_norm_that_is_not_finite_names_its_step(name: str, value: float) -> None:
    refuse_non_finite_step({"loss": 1.0, "grad_norm": 0.0}, 3)
    with pytest.raises(NonFiniteError, match=f"of optimizer step 3 of the batch is {value}"):
        refuse_non_finite_step({"loss": 1.0, "grad_norm": 1.0} | {name: value}, 3)


def test_a_step_that_deepspeed_skips_is_an_error() -> None:
    with pytest.raises(
        NonFiniteError, match=r"DeepSpeed skipped optimizer step 2 .* \(skipped steps of this run: 5\)"
    ):
        refuse_non_finite_step({"loss": 1.0}, 2, skipped_steps=5)


def refusal(check: Any, *arguments: Any) -> str:
    """Return the message with which a check refuses, or an empty string."""
    try:
        check(*arguments)
    except NonFiniteError as error:
        return str(error)
    return ""


def parts(engine: Any) -> list[tuple[str, torch.Tensor]]:
    return [
        (name, getattr(p, "ds_tensor", p).detach())
        for name, p in engine.module.model.named_parameters()
        if getattr(p, "ds_tensor", p).numel()
    ]


def in_one_rank(model: Path, dtype: str, stage: int) -> dict[str, Any]:
    """Poison rank 1 alone, in one way after the other. Return what the checks of this rank say."""
    from learner.engine.deepspeed_engine import build_engine
    from learner.engine.finite import (
        refuse_non_finite_probe,
        refuse_non_finite_state,
        refuse_non_finite_weights,
    )
    from learner.engine.update import PolicyUpdate, take_gradient_norm
    from learner.model.batching import shard

    learner = LearnerConfig(zero_stage=stage, ranks=RANKS)
    options = LearnerOptions(str(model), dtype, 1.0, 0, learner, ObjectiveConfig(), (), 1)
    engine, packing = build_engine(options)
    update = PolicyUpdate(engine, options)
    rank = torch.distributed.get_rank()

    def learn(advantage: float) -> None:
        tokens = np.arange(3, 9)
        samples = [
            TrainingSample(tokens, tokens, np.full(6, -2.0, dtype=np.float32), advantage, 0.1)
            for _ in range(4)
        ]
        update.learn([shard(samples, RANKS, packing)[rank]])

    said: dict[str, Any] = {
        "good step": refusal(learn, 1.0),
        "good state": refusal(refuse_non_finite_state, engine),
    }
    name, tensor = parts(engine)[-1]
    for value in (math.nan, math.inf):
        kept = tensor.view(-1)[0].item()
        if rank == 1:
            tensor.view(-1)[0] = value
        said[f"weight {value}"] = refusal(refuse_non_finite_weights, engine)
        tensor.view(-1)[0] = kept
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    moment = next(
        value for state in optimizer.state.values() for key, value in state.items() if key == "exp_avg_sq"
    )
    if rank == 1:
        moment.view(-1)[-1] = math.inf
    said["moment"] = refusal(refuse_non_finite_state, engine)
    moment.view(-1)[-1] = 0.0
    said["probe"] = refusal(
        refuse_non_finite_probe, [np.ones(3), np.array([0.0, math.nan if rank == 1 else 1.0])]
    )
    said["loss"] = refusal(learn, math.nan if rank == 1 else 1.0)
    take_gradient_norm(engine)  # discards what the backward pass has left
    said["good again"] = refusal(learn, 1.0)
    backward = engine.backward
    if rank == 1:
        engine.backward = lambda loss: backward(loss * math.inf)
    before = parts(engine)[-1][1].clone()
    said["gradient"] = refusal(learn, 1.0)
    said |= {"skipped": engine.skipped_steps, "unchanged": torch.equal(before, parts(engine)[-1][1])}
    said["name"] = name
    return said


def in_all_stages(model: Path) -> dict[str, dict[str, Any]]:
    return {f"{dtype} {stage}": in_one_rank(model, dtype, stage) for dtype, stage in STAGES}


@pytest.mark.timeout(900)  # on a busy machine two processes take minutes to import their libraries
def test_what_one_rank_finds_stops_all_ranks(tmp_path: Path) -> None:
    tokenizer = character_tokenizer("0123456789+-*/()= ", ("<think>",), 64)
    model = tmp_path / "model"
    tiny_model("llama").float().save_pretrained(model)
    tokenizer.save_pretrained(model)
    stages = transposed(in_ranks(RANKS, tmp_path, in_all_stages, model))
    assert any(one["skipped"] for by_rank in stages.values() for one in by_rank), "DeepSpeed skips steps"
    for stage, by_rank in stages.items():
        first, second = by_rank
        for key in ("good step", "good state", "good again"):
            assert first[key] == second[key] == "", (stage, key, by_rank)
        for key in ("weight nan", "weight inf", "moment", "probe", "loss", "gradient"):
            assert first[key] == second[key] != "", (stage, key, by_rank)
        for value in (math.nan, math.inf):
            said = first[f"weight {value}"]
            assert said == f"the weights contain NaN or infinity: {second['name']}", stage
        assert first["moment"] == "the tensors of the optimizer contain NaN or infinity: exp_avg_sq", stage
        assert first["probe"].startswith("the learner's log-probability of a token of the probe"), stage
        assert first["loss"] == "the loss of optimizer step 1 of the batch is nan", stage
        for one in by_rank:  # a step that DeepSpeed skips must not look like one that has changed nothing
            assert one["skipped"] == one["unchanged"], stage
        if first["skipped"]:
            assert "DeepSpeed skipped optimizer step 1" in first["gradient"], stage
            assert "(skipped steps of this run: 1)" in first["gradient"], stage
        else:
            assert first["gradient"].startswith("the gradient norm of optimizer step 1"), stage


def transposed(by_rank: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {stage: [one[stage] for one in by_rank] for stage in by_rank[0]}


def test_a_norm_of_nan_is_found_on_any_kind_of_tensor() -> None:
    """Integers and empty tensors are skipped."""
    from learner.engine.finite import _fault

    good = nn.Linear(3, 2)
    tensors = [("count", torch.tensor([2**31 - 1])), ("empty", torch.empty(0))]
    tensors += [(name, p.detach()) for name, p in good.named_parameters()]
    assert _fault(tensors, "the weights") is None
    bad = [(f"bad {index}", torch.tensor([1.0, math.nan], dtype=torch.bfloat16)) for index in range(5)]
    assert (_fault([*tensors, *bad], "the weights") or "").endswith("bad 0, bad 1, bad 2 and 2 others")
