"""The DeepSpeed engine of one learner rank: how it is built, and how whole weights come out of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig
from learner.engine.deepspeed_config import deepspeed_config
from learner.engine.lr_schedule import lr_factor
from learner.model.batching import Packing

if TYPE_CHECKING:  # an actor's options must be readable without them
    from deepspeed import DeepSpeedEngine
    from torch import Tensor, nn


def build_engine(options: LearnerOptions) -> tuple[DeepSpeedEngine, Packing]:
    """Build the engine of this rank, after `join_ranks`. Also says how its micro-batches are to be cut.

    Raises:
        ValueError: the model cannot do what `options.learner` asks of it.
    """
    import deepspeed
    import torch
    from transformers import AutoModelForCausalLM

    from learner.model.policy import prepare_policy

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
        fused=True,  # one pass over the weights instead of ten; CPU has it too
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
    """Without ZeRO, DeepSpeed clips float32 gradients and forgets their norm: the same, and it can be asked for."""
    from torch.nn.utils import clip_grad_norm_

    def clip_fp32_gradients() -> None:
        engine._global_grad_norm = clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping())

    engine.clip_fp32_gradients = clip_fp32_gradients


@contextmanager
def whole_weights(engine: DeepSpeedEngine, learner: LearnerConfig) -> Iterator[dict[str, Tensor]]:
    """All weights under their checkpoint names, tied ones once, adapters merged, whole on every rank. A collective
    under ZeRO 3."""
    model = engine.module.model
    with _gathered(engine, model.parameters()):
        if learner.lora_rank is None:
            yield {name: parameter.detach() for name, parameter in model.named_parameters()}
        else:
            from learner.model.adapters import merged_weights

            yield merged_weights(model)


@contextmanager
def published_tensors(engine: DeepSpeedEngine, learner: LearnerConfig) -> Iterator[dict[str, Tensor]]:
    """What a rollout worker must be given to serve the current weights: all of them, or the low-rank updates of those
    that it has loaded. A collective under ZeRO 3."""
    if learner.lora_rank is None:
        with whole_weights(engine, learner) as weights:
            yield weights
        return
    from learner.model.adapters import low_rank_factors

    model = engine.module.model
    with _gathered(engine, (parameter for parameter in model.parameters() if parameter.requires_grad)):
        yield low_rank_factors(model)


@contextmanager
def _gathered(engine: DeepSpeedEngine, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """In the block `parameters` are whole on every rank. A collective under ZeRO 3."""
    import deepspeed

    partitioned = engine.zero_optimization_stage() == 3
    with deepspeed.zero.GatheredParameters(list(parameters), enabled=partitioned):
        yield
