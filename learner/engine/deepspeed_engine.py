"""The DeepSpeed engine of one learner rank: its configuration, its construction, and the extraction of its weights.

Importing this module imports neither torch nor DeepSpeed, because the options of an actor must be readable without
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig
from learner.model.batching import Packing

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from torch import Tensor, nn


# --- Configuration and learning rate. Pure.


def deepspeed_config(learner: LearnerConfig, dtype: str) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a model in `dtype`: partitioning, precision, offloading.

    In bfloat16 the model computes in bfloat16. Everything that accumulates small values is float32: the optimizer's
    copy of the weights, its moments, and the gradients from one micro-batch to the next. ZeRO 0 is the exception: there
    DeepSpeed accumulates gradients in bfloat16.
    """
    zero: dict[str, Any] = {"stage": learner.zero_stage}
    if learner.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": learner.gpus_per_rank > 0}
    if learner.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": learner.gpus_per_rank > 0}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # We call step() at the end of the batch: the number of micro-batches differs from batch to batch.
        "managed_gradient_accumulation": False,
        "gradient_clipping": learner.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == "bfloat16"},
        "steps_per_print": 10**9,
    }
    if dtype == "bfloat16" and learner.zero_stage > 0:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if dtype == "bfloat16":
        config["communication_data_type"] = "fp32"
    return config


def lr_factor(step: int, steps: int, learner: LearnerConfig) -> float:
    """Return the factor of `learner.learning_rate` in optimizer step `step` (from 0) of `steps`.

    The factor rises linearly over the warm-up steps. After that it is constant or decays, and would reach 0 in the step
    after the last.
    """
    warmup = learner.warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if learner.lr_schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    if learner.lr_schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))


# --- Construction.


def build_engine(options: LearnerOptions) -> tuple[DeepSpeedEngine, Packing]:
    """Build the engine of this rank, after `join_ranks`. Also returns the rules for cutting its micro-batches.

    Raises:
        ValueError: if the model does not support the settings in `options.learner`.
    """
    import deepspeed
    import torch
    from transformers import AutoModelForCausalLM

    from learner.model.policy_setup import prepare_policy

    learner = options.learner
    torch.manual_seed(options.seed)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    model.train()
    if learner.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if learner.lora_rank is not None:
        from learner.model.adapters import add_adapters, refuse_unnamed

        add_adapters(model, learner)
        refuse_unnamed(model, Path(options.model))
    policy, packing = prepare_policy(model, learner, options.max_context_tokens)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=learner.learning_rate,
        betas=(learner.adam_beta1, learner.adam_beta2),
        weight_decay=learner.weight_decay,
        fused=True,  # one pass over the weights instead of ten, also on CPU
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, partial(lr_factor, steps=options.steps, learner=learner)
    )
    engine, *_ = deepspeed.initialize(
        model=policy,
        optimizer=optimizer,
        lr_scheduler=schedule,
        config=deepspeed_config(learner, options.dtype),
    )
    if learner.zero_stage == 0:
        _keep_gradient_norm(engine)
    return engine, packing


def _keep_gradient_norm(engine: DeepSpeedEngine) -> None:
    """Make the gradient norm available without ZeRO, where DeepSpeed clips float32 gradients and discards the norm."""
    from torch.nn.utils import clip_grad_norm_

    def clip_fp32_gradients() -> None:
        engine._global_grad_norm = clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping())

    engine.clip_fp32_gradients = clip_fp32_gradients


# --- Weights. All of these are collectives under ZeRO 3.


@contextmanager
def whole_weights(engine: DeepSpeedEngine, learner: LearnerConfig) -> Iterator[dict[str, Tensor]]:
    """Provide all weights under their checkpoint names, whole on every rank: tied weights once, adapters merged."""
    model: Any = engine.module.model
    with _gathered(engine, model.parameters()):
        if learner.lora_rank is None:
            yield {name: parameter.detach() for name, parameter in model.named_parameters()}
        else:
            from learner.model.adapters import merged_weights

            yield merged_weights(model)


@contextmanager
def published_tensors(engine: DeepSpeedEngine, learner: LearnerConfig) -> Iterator[dict[str, Tensor]]:
    """Provide the tensors that a rollout worker needs to serve the current weights: all weights, or the low-rank
    updates of the weights that it has loaded."""
    if learner.lora_rank is None:
        with whole_weights(engine, learner) as weights:
            yield weights
        return
    from learner.model.adapters import low_rank_factors

    model: Any = engine.module.model
    with _gathered(engine, (parameter for parameter in model.parameters() if parameter.requires_grad)):
        yield low_rank_factors(model)


@contextmanager
def _gathered(engine: DeepSpeedEngine, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Make `parameters` whole on every rank within the block."""
    import deepspeed

    partitioned = engine.zero_optimization_stage() == 3
    with deepspeed.zero.GatheredParameters(list(parameters), enabled=partitioned):
        yield


ADAPTER_FOLDER = "adapter"
"""The folder inside an exported directory that holds the adapter alone, in peft's format."""


def export_model(engine: DeepSpeedEngine, options: LearnerOptions, directory: Path, *, write: bool) -> None:
    """Write the current model as a Hugging Face directory: the merged weights, the tokenizer and, if there is one, the
    adapter alone. All ranks call this together, and one rank has `write` set."""
    from transformers import AutoTokenizer

    lora = options.learner.lora_rank is not None
    with whole_weights(engine, options.learner) as weights:
        if not write:
            return
        state = {name: weight.cpu().clone() for name, weight in weights.items()}
        if lora:
            from learner.model.adapters import save_adapter

            save_adapter(engine.module.model, options.learner, options.model, directory / ADAPTER_FOLDER)
    engine.module.model.save_pretrained(directory, state_dict=state)
    AutoTokenizer.from_pretrained(options.model).save_pretrained(directory)
