"""What DeepSpeed is told follows from the settings."""

from __future__ import annotations

import pytest

from cluster.core.config import LearnerConfig
from learner.engine.deepspeed_config import deepspeed_config


def test_nothing_is_offloaded_unasked() -> None:
    assert deepspeed_config(LearnerConfig(zero_stage=3), "float32")["zero_optimization"] == {"stage": 3}


@pytest.mark.parametrize(
    ("offload", "kept"),
    [("optimizer", {"offload_optimizer"}), ("parameters", {"offload_optimizer", "offload_param"})],
)
@pytest.mark.parametrize("gpus", [0, 1])
def test_what_is_offloaded_is_kept_in_host_memory(offload: str, kept: set[str], gpus: int) -> None:
    """Pinned where a GPU fetches it from there."""
    learner = LearnerConfig.model_validate({"zero_stage": 3, "offload": offload, "gpus_per_rank": gpus})
    zero = deepspeed_config(learner, "float32")["zero_optimization"]
    assert zero.keys() - {"stage"} == kept
    assert all(zero[part] == {"device": "cpu", "pin_memory": gpus > 0} for part in kept)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_in_bfloat16_gradients_are_summed_in_float32(zero_stage: int) -> None:
    """But for ZeRO 0, where DeepSpeed refuses it."""
    learner = LearnerConfig.model_validate({"zero_stage": zero_stage})
    config = deepspeed_config(learner, "bfloat16")
    assert config["bf16"] == {"enabled": True}
    assert (config.get("data_types") == {"grad_accum_dtype": "fp32"}) == (zero_stage > 0)
    assert config["communication_data_type"] == "fp32"
    assert deepspeed_config(learner, "float32")["bf16"] == {"enabled": False}
