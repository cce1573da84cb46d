"""The estimate of a learner rank's memory agrees with what torch allocates in two steps of a real engine.

The engine is on the CPU and has the settings of a GPU. Its allocations are those of a GPU, except inside of kernels and
of NCCL, and the allocator's fragments. That is not shown here. The model is small, and so are DeepSpeed's buckets.
"""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from cluster.configuration.memory import learner_memory
from cluster.configuration.model_shape import ModelShape
from cluster.core.actor_options import LearnerOptions
from cluster.core.config import RunConfig
from learner.engine import deepspeed_engine
from tests.builders import tiny_model
from tests.cluster.configuration.runs import run_config
from tests.learner.engine.allocations import allocations
from tests.learner.engine.rank_processes import in_ranks

SIZES = {
    "vocab_size": 4000,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SHAPE = ModelShape.from_config({"model_type": "llama", "tie_word_embeddings": False, **SIZES})
BUCKET_ELEMENTS = 400_000
"""A tenth of the model, and less than its output layer, as in the 7B model."""
TOKENS = 48
CASES = [(stage, dtype) for stage in range(4) for dtype in ("bfloat16", "float32")]
COUNTED = {
    (1, 0, "bfloat16"): 22.00,
    (1, 1, "bfloat16"): 21.43,
    (1, 2, "bfloat16"): 19.99,
    (1, 3, "bfloat16"): 22.76,
    (1, 0, "float32"): 20.00,
    (1, 1, "float32"): 24.40,
    (1, 2, "float32"): 26.79,
    (1, 3, "float32"): 24.47,
    (2, 0, "bfloat16"): 22.00,
    (2, 1, "bfloat16"): 16.00,
    (2, 2, "bfloat16"): 12.37,
    (2, 3, "bfloat16"): 14.10,
    (2, 0, "float32"): 20.00,
    (2, 1, "float32"): 16.90,
    (2, 2, "float32"): 15.44,
    (2, 3, "float32"): 17.32,
}
"""The largest number of bytes per parameter that exist at a time on rank 0, by the number of ranks, the ZeRO stage and
the data type. The slow test below counts those of two ranks again."""


def run_of(ranks: int, stage: int, dtype: str) -> RunConfig:
    return run_config(
        Path(),
        model={"dtype": dtype, "max_context_tokens": TOKENS},
        rollout={
            "gpus_per_worker": 1,
            "prompts_per_step": ranks,
            "responses_per_prompt": 2,
            "max_response_tokens": 24,
        },
        learner={"gpus_per_rank": 1, "zero_stage": stage, "ranks": ranks, "micro_batch_tokens": TOKENS},
    )


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_engine, "BUCKET_ELEMENTS", BUCKET_ELEMENTS)


@pytest.mark.usefixtures("small_buckets")
@pytest.mark.parametrize(("ranks", "stage", "dtype"), COUNTED)
def test_the_estimate_agrees_with_what_was_counted(ranks: int, stage: int, dtype: str) -> None:
    """It is at most 3 % too low, and 15 % too high."""
    parts = learner_memory(run_of(ranks, stage, dtype), SHAPE).parts
    estimated = sum(part.size for part in parts if part.name != "process") / SHAPE.parameters
    assert 0.97 <= estimated / COUNTED[ranks, stage, dtype] <= 1.15


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_count_is_repeatable(tmp_path: Path) -> None:
    """In ZeRO 3 the peak depends on the time at which the other rank arrives: in bfloat16 it was 14.1 on a busy machine
    and is 12.9 on a quiet one. The largest values are kept."""
    model = tiny_model("llama", initializer_range=0.02, max_position_embeddings=512, **SIZES)
    for dtype in ("float32", "bfloat16"):
        model.to(getattr(torch, dtype)).save_pretrained(tmp_path / dtype)
    counted, _ = in_ranks(2, tmp_path, count, str(tmp_path))
    for (stage, dtype), size in zip(CASES, counted, strict=True):
        least = 0.9 if stage == 3 else 0.95
        assert least <= size / SHAPE.parameters / COUNTED[2, stage, dtype] <= 1.05, (stage, dtype)


def count(models: str) -> list[int]:
    """Return the peak of the allocations of this rank for each case. `models` has the model in both types.

    The file of the other type is loaded: on a CPU the weights of a file of the same type are mapped and not allocated.
    """
    import os

    from benchmarks.gpu_check.models import random_bundle
    from learner.model.policy import TokenBatch, response_logprobs

    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # the allocations of other threads are not counted
    deepspeed_engine.BUCKET_ELEMENTS = BUCKET_ELEMENTS
    peaks = []
    for stage, dtype in CASES:
        config = run_of(2, stage, dtype)
        on_cpu = config.learner.model_copy(update={"gpus_per_rank": 0.0})
        other = {"float32": "bfloat16", "bfloat16": "float32"}[dtype]
        options = LearnerOptions(str(Path(models) / other), dtype, 1.0, 0, on_cpu, config.objective, (), 1)
        with allocations() as counted:
            engine, _ = deepspeed_engine.build_engine(options)
            bundle = random_bundle(TOKENS // 2, (TOKENS - TOKENS // 2 + 1,), SIZES["vocab_size"])
            batch = TokenBatch.from_samples(bundle, engine.device)
            for _ in range(2):
                for _ in range(2):
                    logprobs_BT, _ = response_logprobs(engine, batch, 1.0)
                    engine.backward(logprobs_BT.sum())
                    del logprobs_BT
                engine.step()
        peaks.append(counted.peak)
        engine.destroy()
        del engine
        gc.collect()
    return peaks
