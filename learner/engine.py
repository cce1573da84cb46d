"""The DeepSpeed engine of one learner rank: how it is built, and how whole weights come out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.config import LearnerConfig, ObjectiveConfig
from learner.batching import Packing
from learner.rate_schedule import rate_share

if TYPE_CHECKING:  # an actor's options must be readable without them
    import torch
    from deepspeed import DeepSpeedEngine


@dataclass(frozen=True, slots=True)
class LearnerOptions:
    """What a rank needs to build its engine."""

    model: str
    dtype: str
    temperature: float
    seed: int
    learner: LearnerConfig
    objective: ObjectiveConfig
    probe_tokens: tuple[tuple[int, ...], ...]
    steps: int
    """Optimiser steps of the whole run, over which the learning rate is scheduled."""
    max_context_tokens: int | None = None
    """Longest prompt and response together; None if that is not known."""


def build_engine(
    rank: int, address: str, port: int, options: LearnerOptions
) -> tuple[DeepSpeedEngine, Packing]:
    """Join the other ranks at `address:port` and build the engine. Also says how its micro-batches are to be cut."""
    learner = options.learner
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(learner.ranks),
        "LOCAL_RANK": "0",  # Ray shows each rank its own devices only
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
    import deepspeed
    import torch
    from transformers import AutoModelForCausalLM

    from learner.policy import prepare_policy

    torch.manual_seed(options.seed)
    on_gpu = learner.gpus_per_rank > 0
    if not on_gpu:
        torch.set_num_threads(learner.threads_per_rank)
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    model.train()
    if learner.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    policy, packing = prepare_policy(model, learner, options.max_context_tokens)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=learner.learning_rate,
        betas=(learner.adam_beta1, learner.adam_beta2),
        weight_decay=learner.weight_decay,
        fused=True,  # one pass over the weights instead of ten; CPU has it too
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, partial(rate_share, steps=options.steps, learner=learner)
    )
    engine, *_ = deepspeed.initialize(
        model=policy, optimizer=optimizer, lr_scheduler=schedule, config=deepspeed_config(options)
    )
    if learner.zero_stage == 0:
        _keep_gradient_norm(engine)
    return engine, packing


def deepspeed_config(options: LearnerOptions) -> dict[str, Any]:
    learner = options.learner
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # We call step() when the batch is done: the number of micro-batches differs from batch to batch.
        "managed_gradient_accumulation": False,
        "gradient_clipping": learner.max_gradient_norm,
        "zero_optimization": {"stage": learner.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": options.dtype == "bfloat16"},
        "steps_per_print": 10**9,
    }


def _keep_gradient_norm(engine: DeepSpeedEngine) -> None:
    """Without ZeRO, DeepSpeed clips float32 gradients and forgets their norm: the same, and it can be asked for."""
    from torch.nn.utils import clip_grad_norm_

    def clip_fp32_gradients() -> None:
        engine._global_grad_norm = clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping())

    engine.clip_fp32_gradients = clip_fp32_gradients


@contextmanager
def whole_weights(engine: DeepSpeedEngine) -> Iterator[dict[str, torch.Tensor]]:
    """All parameters under their checkpoint names, tied ones once, whole on every rank. A collective under ZeRO 3."""
    import deepspeed

    module = engine.module.model
    partitioned = engine.zero_optimization_stage() == 3
    with deepspeed.zero.GatheredParameters(list(module.parameters()), enabled=partitioned):
        yield {name: parameter.detach() for name, parameter in module.named_parameters()}
