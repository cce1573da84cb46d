"""The arguments of a vLLM engine."""

from __future__ import annotations

from typing import Any

from cluster.core.actor_options import EngineOptions


def vllm_arguments(options: EngineOptions) -> dict[str, Any]:
    """Return the arguments of vLLM's engine, under vLLM's names."""
    device_arguments: dict[str, Any]
    if options.on_gpu:
        device_arguments = {
            "gpu_memory_utilization": options.gpu_memory_utilization,
            "enable_sleep_mode": options.sleeps,
        }
    else:
        # By default a CPU engine takes nearly all of the host's memory. Compilation costs more time than it saves.
        device_arguments = {
            "kv_cache_memory_bytes": int(options.kv_cache_gib * 2**30),
            "enforce_eager": True,
            # vLLM's engine dies if a seeded prompt is prefilled in chunks: it tries to rewind the random generator,
            # which CPU generators do not support. Without chunks, a prompt that does not fit into a step waits for the
            # next one.
            "enable_chunked_prefill": False,
        }
    return {
        "model": options.model,
        "dtype": options.dtype,
        "max_model_len": options.max_context_tokens,
        "max_num_seqs": options.max_sequences,
        "max_num_batched_tokens": max(options.max_context_tokens, options.max_sequences, 8192),
        "tensor_parallel_size": options.tensor_parallel_size,
        # In a placement group vLLM would select Ray's executor, which rejects bundles with several GPUs.
        "distributed_executor_backend": "mp" if options.tensor_parallel_size > 1 else "uni",
        # Log-probabilities of the distribution that tokens are sampled from, that is, after the temperature.
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "worker_extension_cls": "rollout.weights.extension.EngineExtension",
        "disable_log_stats": True,
        **device_arguments,
    }
