"""Compare the estimate of a run's memory with a machine, and name the settings that make it fit. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

from cluster.configuration.gpu_checks import engines_on_one_gpu
from cluster.configuration.memory import (
    CUDA_GRAPHS,
    CUDA_PROCESS,
    FRAGMENTS,
    GIB,
    cache_bytes_per_token,
    engine_memory,
    learner_memory,
    learner_resident,
)
from cluster.configuration.model_shape import ModelShape
from cluster.core.config import ACTOR_ROLES, ActorRole, RunConfig
from cluster.core.problem import Problem

SMALLEST_MICRO_BATCH = 1024
"""The smallest `learner.micro_batch_tokens` that is suggested or chosen."""


def check_gpu_memory(
    config: RunConfig, shape: ModelShape, gpu_gib: float, roles: Collection[ActorRole] = ACTOR_ROLES
) -> Iterator[Problem]:
    """Report a learner rank or an engine that needs more memory than GPUs with `gpu_gib` have."""
    if "learner" in roles and config.learner.gpus_per_rank:
        yield from _check_learner(config, shape, gpu_gib)
    if "rollout" in roles and config.rollout.gpus_per_worker:
        yield from _check_engine(config, shape, gpu_gib)
        if "learner" in roles:
            yield from _check_waking(config, shape, gpu_gib)


def learner_limit(config: RunConfig, gpu_gib: float) -> float:
    """Return the bytes that a learner rank may use of a GPU, beside the engines that share it."""
    limit = gpu_gib * GIB * (1 - FRAGMENTS)
    beside = engines_on_one_gpu(config, beside_learner=True)
    if config.rollout.sleep_while_learning:  # weights and caches are released, and nothing else
        return limit - beside * (CUDA_PROCESS + CUDA_GRAPHS)
    return limit - beside * config.rollout.gpu_memory_utilization * gpu_gib * GIB


def learner_fits(config: RunConfig, shape: ModelShape, gpu_gib: float) -> bool:
    """Return True if a learner rank fits on a GPU with `gpu_gib`, beside the engines that share it."""
    return learner_memory(config, shape).total <= learner_limit(config, gpu_gib)


def cache_tokens(config: RunConfig, shape: ModelShape, gpu_gib: float) -> float:
    """Return the number of tokens for which an engine on a GPU with `gpu_gib` has a key-value cache."""
    budget = config.rollout.gpu_memory_utilization * gpu_gib * GIB
    return (budget - engine_memory(config, shape).total) / cache_bytes_per_token(config, shape)


def with_learner(config: RunConfig, **changes: Any) -> RunConfig:
    """Return `config` with changed settings of the learner."""
    return config.model_copy(update={"learner": config.learner.model_copy(update=changes)})


def _check_learner(config: RunConfig, shape: ModelShape, gpu_gib: float) -> Iterator[Problem]:
    if learner_fits(config, shape, gpu_gib):
        return
    needed, limit = learner_memory(config, shape), learner_limit(config, gpu_gib)
    largest = max(needed.parts, key=lambda part: part.size)
    yield Problem(
        "learner",
        f"a rank needs about {needed.total / GIB:.1f} GiB (the largest part: {largest.name}, "
        f"{largest.size / GIB:.1f} GiB), but {max(0.0, limit) / GIB:.1f} GiB of a GPU are available to it",
        _remedy(config, shape, gpu_gib),
    )


def _remedy(config: RunConfig, shape: ModelShape, gpu_gib: float) -> str:
    """Return the settings that make a rank fit, of which the cheapest come first."""
    changed: dict[str, Any] = {}
    for changes in _ladder(config):
        changed |= changes
        if not learner_fits(with_learner(config, **changed), shape, gpu_gib):
            continue
        for name in tuple(changed):  # those that the last change made unnecessary
            others = {key: value for key, value in changed.items() if key != name}
            if _is_consistent(with_learner(config, **others)) and learner_fits(
                with_learner(config, **others), shape, gpu_gib
            ):
                changed = others
        settings = ", ".join(f"learner.{name}={_written(value)}" for name, value in changed.items())
        needed = learner_memory(with_learner(config, **changed), shape).total
        return f"set {settings} ({needed / GIB:.1f} GiB)"
    return "use more learner ranks, GPUs with more memory, or a smaller model"


def _ladder(config: RunConfig) -> Iterator[dict[str, Any]]:
    """Yield changes that save memory. Each is applied on top of those before it."""
    learner, context = config.learner, config.model.max_context_tokens
    if not learner.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    least = max(SMALLEST_MICRO_BATCH, context)
    tokens = learner.micro_batch_tokens
    while tokens > least:
        tokens = max(least, tokens // 2)
        yield {"micro_batch_tokens": tokens}
    if learner.ranks > 1 and learner.zero_stage < 3:
        yield {"zero_stage": 3}
    if learner.offload == "none":
        yield {"zero_stage": max(2, learner.zero_stage), "offload": "optimizer"}
    if learner.lora_rank is None:
        yield {"lora_rank": 16, "offload": "none"}


def _is_consistent(config: RunConfig) -> bool:
    """Return True if the ZeRO stage can offload what is offloaded."""
    return config.learner.zero_stage >= {"none": 0, "optimizer": 2, "parameters": 3}[config.learner.offload]


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_engine(config: RunConfig, shape: ModelShape, gpu_gib: float) -> Iterator[Problem]:
    """Report an engine without memory for the cache of one sequence, which vLLM refuses to start."""
    rollout, context = config.rollout, config.model.max_context_tokens
    if cache_tokens(config, shape, gpu_gib) >= context:
        return
    needed = engine_memory(config, shape).total + context * cache_bytes_per_token(config, shape)
    fraction = math.ceil(100 * needed / (gpu_gib * GIB)) / 100
    fix = "raise rollout.tensor_parallel_size and rollout.gpus_per_worker, or lower model.max_context_tokens"
    if fraction <= 0.95:
        fix = f"raise it to {fraction:g} or more"
    yield Problem(
        "rollout.gpu_memory_utilization",
        f"an engine with the cache of one sequence needs about {needed / GIB:.1f} GiB, but "
        f"{rollout.gpu_memory_utilization:g} of a GPU is {rollout.gpu_memory_utilization * gpu_gib:.1f} GiB",
        fix,
    )


def _check_waking(config: RunConfig, shape: ModelShape, gpu_gib: float) -> Iterator[Problem]:
    """Report engines that wake up beside a learner whose state stays on their GPU."""
    beside = engines_on_one_gpu(config, beside_learner=True)
    if not config.rollout.sleep_while_learning or not beside:
        return
    kept = learner_resident(config, shape)
    engines = beside * config.rollout.gpu_memory_utilization * gpu_gib * GIB
    if kept + engines > gpu_gib * GIB:
        most = math.floor(100 * (1 - kept / (gpu_gib * GIB)) / beside) / 100
        lower = f"lower it to {most:g}, or " if most > 0.1 else ""
        yield Problem(
            "rollout.gpu_memory_utilization",
            f"while an engine samples, the learner keeps {kept / GIB:.1f} GiB of their GPU, and "
            f"{config.rollout.gpu_memory_utilization:g} of it does not remain",
            f"{lower}set learner.offload to optimizer or learner.lora_rank",
        )
