"""NaN and infinity are found where they are, on the rank that has them, with every ZeRO stage and data type."""

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
STAGES = [("float32", 0), ("float32", 1), ("float32", 2), ("float32", 3), ("bfloat16", 1), ("bfloat16", 3)]


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_or_norm_that_is_not_finite_names_its_step(name: str, value: float) -> None:
    refuse_non_finite_step({"loss": 1.0, "grad_norm": 0.0}, 3)
    with pytest.raises(NonFiniteError, match=f"of optimizer step 3 of the batch is {value}"):
        refuse_non_finite_step({"loss": 1.0, "grad_norm": 1.0} | {name: value}, 3)


def test_a_step_that_deepspeed_skips_is_an_error() -> None:
    with pytest.raises(NonFiniteError, match="DeepSpeed skipped optimizer step 2"):
        refuse_non_finite_step({"loss": 1.0}, 2, skipped=True)


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


def in_one_rank(model: Path, dtype: str, stage: int) -> dict[str, str]:
    """Poison tensors of rank 1, one after the other. Return what the checks of this rank say."""
    from learner.engine.deepspeed_engine import build_engine
    from learner.engine.finite import refuse_non_finite_state, refuse_non_finite_weights
    from learner.engine.update import PolicyUpdate
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

    said = {"good step": refusal(learn, 1.0), "good state": refusal(refuse_non_finite_state, engine)}
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
    said["name"] = name
    # On all ranks, because a rank that refuses its loss does not take part in the step.
    said["loss"] = refusal(learn, math.nan)
    return said


def in_all_stages(model: Path) -> dict[str, dict[str, str]]:
    return {f"{dtype} {stage}": in_one_rank(model, dtype, stage) for dtype, stage in STAGES}


@pytest.mark.timeout(900)  # on a busy machine two processes take minutes to import their libraries
def test_each_rank_finds_what_is_not_finite_in_its_part(tmp_path: Path) -> None:
    tokenizer = character_tokenizer("0123456789+-*/()= ", ("<think>",), 64)
    model = tmp_path / "model"
    tiny_model("llama").float().save_pretrained(model)
    tokenizer.save_pretrained(model)
    for stage, by_rank in transposed(in_ranks(RANKS, tmp_path, in_all_stages, model)).items():
        first, second = by_rank
        assert not any(one[key] for one in by_rank for key in ("good step", "good state")), stage
        for value in (math.nan, math.inf):
            assert first[f"weight {value}"] == "", stage
            assert second[f"weight {value}"] == f"the weights contain NaN or infinity: {second['name']}", (
                stage
            )
        assert first["moment"] == "", stage
        assert second["moment"] == "the tensors of the optimizer contain NaN or infinity: exp_avg_sq", stage
        assert all(one["loss"].startswith("the loss of optimizer step 1") for one in by_rank), stage


def transposed(by_rank: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {stage: [one[stage] for one in by_rank] for stage in by_rank[0]}


def test_a_norm_of_nan_is_found_on_any_kind_of_tensor() -> None:
    """Integers and empty tensors are skipped."""
    from learner.engine.finite import _refuse

    good = nn.Linear(3, 2)
    tensors = [("count", torch.tensor([2**31 - 1])), ("empty", torch.empty(0))]
    tensors += [(name, p.detach()) for name, p in good.named_parameters()]
    _refuse(tensors, "the weights")
    bad = [(f"bad {index}", torch.tensor([1.0, math.nan], dtype=torch.bfloat16)) for index in range(5)]
    with pytest.raises(NonFiniteError, match="bad 0, bad 1, bad 2 and 2 others"):
        _refuse([*tensors, *bad], "the weights")
