"""The check that a run can resume from a checkpoint: allowed changes, and one line for each refused change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from learner.state.state_description import StateDescription, obstacle, other_model, resizing

SAVED = StateDescription(
    architecture="LlamaForCausalLM",
    dtype="float32",
    ranks=2,
    zero_stage=2,
    shapes={"embed.weight": (32, 64), "norm.weight": (64,), "scale": ()},
)


def test_it_survives_a_round_trip() -> None:
    assert StateDescription.from_json(SAVED.to_json()) == SAVED


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"shapes": {}}', '{"shapes": 3, "dtype": "float32"}'])
def test_what_is_none_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"description|JSON|Expecting"):
        StateDescription.from_json(text)


def test_a_run_goes_on_with_the_same_settings() -> None:
    assert obstacle(SAVED, "float32", 2) is None
    assert other_model(SAVED, replace(SAVED, ranks=1, zero_stage=3)) is None
    assert not resizing(SAVED, 2, 2)


@pytest.mark.parametrize(
    ("saved_stage", "stage", "fits"),
    [(saved, now, {saved, now} <= {1, 2} or saved == now) for saved in range(4) for now in range(4)],
)
def test_zero_stages_that_cut_alike_may_take_each_others_place(
    saved_stage: int, stage: int, fits: bool
) -> None:
    reason = obstacle(replace(SAVED, zero_stage=saved_stage), "float32", stage)
    assert (reason is None) == fits
    assert fits or f"learner.zero_stage {saved_stage} and cannot be read with {stage}" in str(reason)


def test_another_dtype_is_in_the_way() -> None:
    assert (
        obstacle(SAVED, "bfloat16", 2) == "its weights are float32, and model.dtype is bfloat16: set it back"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "Qwen2ForCausalLM"}, "is a LlamaForCausalLM, and this run's model is a Qwen2ForCausalLM"),
        (
            {"shapes": SAVED.shapes | {"embed.weight": (40, 64)}},
            "in the checkpoint embed.weight is 32 × 64, and in this run's model it is 40 × 64",
        ),
        (
            {"shapes": SAVED.shapes | {"bias": (64,)}},
            "in the checkpoint bias is missing, and in this run's model it is 64",
        ),
        (
            {"shapes": {"embed.weight": (32, 64), "norm.weight": (64,)}},
            "in the checkpoint scale is a number, and in this run's model it is missing",
        ),
        (
            {"shapes": SAVED.shapes | {"embed.lora_A.default.weight": (8, 64)}},
            "it was trained without LoRA, and this run trains with",
        ),
    ],
)  # fmt: skip
def test_another_model_is_told_by_its_first_difference(change: dict[str, Any], said: str) -> None:
    reason = other_model(SAVED, replace(SAVED, **change))
    assert reason is not None
    assert said in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("stage", "ranks", "repartitioned"),
    [(2, 1, True), (2, 3, True), (1, 2, True), (2, 2, False)],
)
def test_ranks_and_stage_decide_whether_it_is_repartitioned(
    stage: int, ranks: int, repartitioned: bool
) -> None:
    assert resizing(SAVED, ranks, stage) == repartitioned


def test_without_zero_every_rank_has_all_of_it() -> None:
    assert not resizing(replace(SAVED, zero_stage=0), ranks=5, zero_stage=0)


def test_a_description_of_an_earlier_version_can_be_read() -> None:
    """The keys of `description.json` have not changed since the first checkpoints."""
    text = (
        '{"architecture": "LlamaForCausalLM", "dtype": "float32", "ranks": 2, "zero_stage": 2, '
        '"shapes": {"embed.weight": [32, 64], "scale": []}}'
    )
    assert StateDescription.from_json(text) == StateDescription(
        "LlamaForCausalLM", "float32", 2, 2, {"embed.weight": (32, 64), "scale": ()}
    )
