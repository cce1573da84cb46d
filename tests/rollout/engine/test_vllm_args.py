"""The arguments of vLLM's engine. No engine is started, so these tests do not show that a GPU accepts them."""

from __future__ import annotations

import pytest

from cluster.core.actor_options import EngineOptions
from rollout.engine.vllm_args import vllm_arguments


def options(*, on_gpu: bool, tensor_parallel_size: int = 1, sleeps: bool = False) -> EngineOptions:
    return EngineOptions(
        run_id="test",
        model="model",
        dtype="float32",
        max_context_tokens=64,
        max_sequences=8,
        tensor_parallel_size=tensor_parallel_size,
        kv_cache_gib=0.5,
        gpu_memory_utilization=0.5,
        on_gpu=on_gpu,
        sleeps=sleeps,
    )


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize(("tensor_parallel_size", "executor"), [(1, "uni"), (2, "mp"), (4, "mp")])
def test_the_executor_is_always_given(on_gpu: bool, tensor_parallel_size: int, executor: str) -> None:
    """In a placement group vLLM would select Ray's executor, which rejects bundles with several GPUs."""
    arguments = vllm_arguments(options(on_gpu=on_gpu, tensor_parallel_size=tensor_parallel_size))
    assert arguments["distributed_executor_backend"] == executor
    assert arguments["tensor_parallel_size"] == tensor_parallel_size


@pytest.mark.parametrize("sleeps", [False, True])
def test_an_engine_on_a_gpu_uses_the_configured_fraction_of_the_memory(sleeps: bool) -> None:
    arguments = vllm_arguments(options(on_gpu=True, sleeps=sleeps))
    assert arguments["gpu_memory_utilization"] == 0.5
    assert arguments["enable_sleep_mode"] is sleeps
    assert not {"kv_cache_memory_bytes", "enforce_eager"} & set(arguments)


def test_an_engine_on_a_cpu_does_not_split_prompts() -> None:
    """A seeded request with chunked prefill would end the engine."""
    arguments = vllm_arguments(options(on_gpu=False))
    assert arguments["enable_chunked_prefill"] is False
    assert arguments["kv_cache_memory_bytes"] == 2**29
