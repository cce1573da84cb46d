"""The DeepSpeed engine of one learner rank: its configuration, its construction, and the export of its model.

Importing this module imports neither torch nor DeepSpeed, because the options of an actor must be readable without
them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig
from learner.model.batching import Packing

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine
    from torch import Tensor

    from learner.model.policy import Policy
    from learner.model.weight_sources import WeightSource


# --- Configuration and learning rate. Pure.

BUCKET_ELEMENTS = 100_000_000
"""The number of elements that ZeRO communicates at a time: large enough for the full bandwidth of a network, and one in
five of DeepSpeed's default, whose buffers take 2 GB each in float32."""


def deepspeed_config(learner: LearnerConfig, dtype: str) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a model in `dtype`: partitioning, precision, offloading.

    In bfloat16 the model computes in bfloat16. Everything that accumulates small values is float32: the optimizer's
    copy of the weights, its moments, and the gradients from one micro-batch to the next. ZeRO 0 is the exception: there
    DeepSpeed accumulates gradients in bfloat16. The sum over the ranks is float32 with every stage.
    """
    zero: dict[str, Any] = {
        "stage": learner.zero_stage,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
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
        # ZeRO 2 and 3 sum the ranks' gradients after every micro-batch. In bfloat16 this would be half of the
        # communication, and each sum would be rounded.
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

    from learner.engine.model_loading import complete_partition

    learner = options.learner
    policy, packing = build_policy(options)
    if learner.zero_stage == 3:
        complete_partition(policy)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in policy.parameters() if parameter.requires_grad],
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


def build_policy(options: LearnerOptions) -> tuple[Policy, Packing]:
    """Load the model of this rank on its device, with adapters if there are any, and test it. With ZeRO 3 the rank
    loads its part only. A collective.

    Raises:
        ValueError: if the model does not support the settings in `options.learner`.
    """
    import torch

    from learner.engine.model_loading import load_model, load_partitioned
    from learner.model.policy_setup import prepare_policy

    learner = options.learner
    dtype, device = getattr(torch, options.dtype), rank_device(learner)
    torch.manual_seed(options.seed)
    if learner.zero_stage == 3:
        model = load_partitioned(options.model, dtype, device, deepspeed_config(learner, options.dtype))
    else:
        model = load_model(options.model, dtype, device)
    model.train()
    if learner.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if learner.lora_rank is not None:
        from learner.model.adapters import add_adapters, refuse_unnamed

        torch.manual_seed(options.seed)  # the adapters are the same, whatever loading has drawn
        add_adapters(model, learner)
        refuse_unnamed(model, Path(options.model))
    return prepare_policy(model, learner, options.max_context_tokens)


def rank_device(learner: LearnerConfig) -> torch.device:
    """Return the device of this process. Ray shows each rank its own devices only."""
    import torch

    return torch.device("cuda", 0) if learner.gpus_per_rank > 0 else torch.device("cpu")


def _keep_gradient_norm(engine: DeepSpeedEngine) -> None:
    """Make the gradient norm available without ZeRO, where DeepSpeed clips float32 gradients and discards the norm."""
    from torch.nn.utils import clip_grad_norm_

    def clip_fp32_gradients() -> None:
        engine._global_grad_norm = clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping())

    engine.clip_fp32_gradients = clip_fp32_gradients


# --- Export.

ADAPTER_FOLDER = "adapter"
"""The folder inside an exported directory that holds the adapter alone, in peft's format."""


def export_model(engine: DeepSpeedEngine, options: LearnerOptions, directory: Path) -> None:
    """Write the current model as a Hugging Face directory: the merged weights, the tokenizer and, if there is one, the
    adapter alone. All ranks call this together, and rank 0 writes. Only rank 0 holds the whole model, in host memory.
    """
    from transformers import AutoTokenizer

    from learner.engine.weight_stream import whole_sources

    model: Any = engine.module.model
    weights = _in_host_memory(engine, whole_sources(engine, options.learner))
    if options.learner.lora_rank is not None:
        from learner.model.adapters import save_adapter, saved_sources

        adapter = _in_host_memory(engine, saved_sources(model))
        if adapter is not None:
            save_adapter(model, adapter, options.learner, options.model, directory / ADAPTER_FOLDER)
    if weights is not None:
        model.save_pretrained(directory, state_dict=weights)
        AutoTokenizer.from_pretrained(options.model).save_pretrained(directory)


def _in_host_memory(engine: DeepSpeedEngine, sources: Sequence[WeightSource]) -> dict[str, Tensor] | None:
    """Return copies of the tensors of `sources` on rank 0, and None on the other ranks. A collective."""
    from learner.engine.weight_stream import streamed_weights

    with streamed_weights(engine, sources) as tensors:
        if tensors is None:
            return None
        return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
