"""What a rollout worker needs to build its engine, and what of that vLLM is told."""

from __future__ import annotations

from typing import Any

from cluster.core.actor_options import EngineOptions


def vllm_arguments(options: EngineOptions) -> dict[str, Any]:
    """What vLLM's engine is told, under vLLM's names."""
    device_arguments: dict[str, Any]
    if options.on_gpu:
        device_arguments = {
            "gpu_memory_utilization": options.gpu_memory_utilization,
            "enable_sleep_mode": options.sleeps,
        }
    else:
        # The CPU default takes nearly all of the host's memory; and compilation costs more than it brings.
        device_arguments = {
            "kv_cache_memory_bytes": int(options.kv_cache_gib * 2**30),
            "enforce_eager": True,
            # A seeded request whose tokens are taken in by parts ends vLLM's engine: it would set the random
            # generator back, and those of a CPU cannot be. What does not fit into a step waits for the next.
            "enable_chunked_prefill": False,
        }
    return {
        "model": options.model,
        "dtype": options.dtype,
        "max_model_len": options.max_context_tokens,
        "max_num_seqs": options.max_sequences,
        "max_num_batched_tokens": max(options.max_context_tokens, options.max_sequences, 8192),
        "tensor_parallel_size": options.tensor_parallel_size,
        # Inside a placement group vLLM would choose Ray's executor, which refuses a bundle of several GPUs.
        "distributed_executor_backend": "mp" if options.tensor_parallel_size > 1 else "uni",
        # Log-probabilities of the distribution that was really sampled from: after the temperature.
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "worker_extension_cls": "rollout.weights.extension.EngineExtension",
        "disable_log_stats": True,
        **device_arguments,
    }
