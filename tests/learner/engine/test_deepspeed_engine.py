"""DeepSpeed's configuration and the learning-rate schedule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig, ObjectiveConfig
from learner.engine.deepspeed_engine import BUCKET_ELEMENTS, build_policy, deepspeed_config, lr_factor

# --- Configuration.

BUCKETS = {"reduce_bucket_size": BUCKET_ELEMENTS, "allgather_bucket_size": BUCKET_ELEMENTS}


def test_nothing_is_offloaded_unasked() -> None:
    zero = deepspeed_config(LearnerConfig(zero_stage=3), "float32")["zero_optimization"]
    assert zero == {"stage": 3, **BUCKETS}


@pytest.mark.parametrize(
    ("offload", "kept"),
    [("optimizer", {"offload_optimizer"}), ("parameters", {"offload_optimizer", "offload_param"})],
)
@pytest.mark.parametrize("gpus", [0, 1])
def test_what_is_offloaded_is_kept_in_host_memory(offload: str, kept: set[str], gpus: int) -> None:
    """Pinned where a GPU fetches it from there."""
    learner = LearnerConfig.model_validate({"zero_stage": 3, "offload": offload, "gpus_per_rank": gpus})
    zero = deepspeed_config(learner, "float32")["zero_optimization"]
    assert zero.keys() - {"stage", *BUCKETS} == kept
    assert all(zero[part] == {"device": "cpu", "pin_memory": gpus > 0} for part in kept)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_in_bfloat16_gradients_are_summed_in_float32(zero_stage: int) -> None:
    """But for ZeRO 0, where DeepSpeed refuses it."""
    learner = LearnerConfig.model_validate({"zero_stage": zero_stage})
    config = deepspeed_config(learner, "bfloat16")
    assert config["bf16"] == {"enabled": True}
    assert (config.get("data_types") == {"grad_accum_dtype": "fp32"}) == (zero_stage > 0)
    assert config["communication_data_type"] == "fp32"
    assert "communication_data_type" not in deepspeed_config(learner, "float32")
    assert deepspeed_config(learner, "float32")["bf16"] == {"enabled": False}


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_deepspeed_takes_the_buckets(zero_stage: int) -> None:
    """It would also accept names that it does not know."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    learner = LearnerConfig.model_validate({"zero_stage": zero_stage})
    zero = DeepSpeedZeroConfig(**deepspeed_config(learner, "float32")["zero_optimization"])
    assert (zero.reduce_bucket_size, zero.allgather_bucket_size) == (BUCKET_ELEMENTS, BUCKET_ELEMENTS)
    assert DeepSpeedZeroConfig().reduce_bucket_size > BUCKET_ELEMENTS


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (0.5, "cuda:0"), (1, "cuda:0")])
def test_a_policy_is_loaded_and_tested_on_the_device_that_trains_it(
    gpus: float, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This shows the device that is given to the loading, and not a computation on a GPU."""
    seen: list[torch.device] = []

    def load(model: str, dtype: torch.dtype, device: torch.device, *_: object) -> None:
        seen.append(device)
        raise ZeroDivisionError

    for name in ("load_model", "load_partitioned"):
        monkeypatch.setattr(f"learner.engine.model_loading.{name}", load)
    for zero_stage in (2, 3):
        learner = LearnerConfig.model_validate({"gpus_per_rank": gpus, "zero_stage": zero_stage})
        options = LearnerOptions("model", "float32", 1.0, 0, learner, ObjectiveConfig(), (), 1)
        with pytest.raises(ZeroDivisionError):
            build_policy(options)
    assert seen == [torch.device(device)] * 2


# --- Learning rate.


SCHEDULES = ("constant", "linear", "cosine")


def factors(schedule: str, steps: int, warmup: int) -> list[float]:
    learner = LearnerConfig(lr_schedule=schedule, warmup_steps=warmup)
    return [lr_factor(step, steps, learner) for step in range(steps)]


@given(st.sampled_from(SCHEDULES), st.integers(1, 200), st.integers(0, 50))
def test_it_rises_to_the_whole_rate_and_never_again(schedule: str, steps: int, warmup: int) -> None:
    rates = factors(schedule, steps, warmup)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[warmup : warmup + 1] in ([1.0], [])


@pytest.mark.parametrize(
    ("schedule", "middle", "after_the_last"), [("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)]
)
def test_where_it_leads(schedule: str, middle: float, after_the_last: float) -> None:
    learner = LearnerConfig(lr_schedule=schedule, warmup_steps=10)
    assert lr_factor(60, 110, learner) == pytest.approx(middle)
    assert lr_factor(110, 110, learner) == pytest.approx(after_the_last, abs=1e-12)
    assert lr_factor(500, 110, learner) == pytest.approx(after_the_last, abs=1e-12)
