"""The frozen reference policy: the model that the run started with. The KL term is the divergence from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from cluster.core.actor_options import LearnerOptions
from learner.engine.deepspeed_engine import deepspeed_config
from learner.engine.model_loading import load_model, load_partitioned
from learner.model.adapters import adapters_disabled
from learner.model.partitioned import gathered_in_forward
from learner.model.policy import Policy, TokenBatch, response_logprobs

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class Reference(Protocol):
    """A source of reference log-probabilities."""

    def logprobs(self, batch: TokenBatch, temperature: float) -> Tensor:
        """Return log π_ref of the response tokens, float32 [B, T], without gradient. A collective under ZeRO 3: all
        ranks call it equally often."""


def build_reference(engine: DeepSpeedEngine, options: LearnerOptions) -> Reference | None:
    """Build the reference of the objective's KL term, or return None without loading anything if there is no KL term.
    All ranks call this together."""
    if not options.objective.kl_coefficient:
        return None
    if options.learner.lora_rank is not None:
        return WithoutAdapters(engine)
    return FrozenModel(engine, options)


class WithoutAdapters:
    """The reference of a run that trains adapters only: the model without its adapters, which costs no memory."""

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self._engine = engine

    def logprobs(self, batch: TokenBatch, temperature: float) -> Tensor:
        with torch.no_grad(), adapters_disabled(self._engine.module):
            return response_logprobs(self._engine, batch, temperature)[0]


class FrozenModel:
    """A second model, without gradients or optimizer state.

    It takes at most the memory of its weights. With ZeRO 3 they are partitioned over the ranks and offloaded, like the
    learner's own. Otherwise, on CPU, transformers maps the model's safetensors files into memory if nothing has to be
    converted, so that all ranks of a machine share the kernel's single copy. On GPU every rank holds all weights.
    """

    def __init__(self, engine: DeepSpeedEngine, options: LearnerOptions) -> None:
        dtype = getattr(torch, options.dtype)
        attention = engine.module.model.config._attn_implementation  # the micro-batches are the same
        config = _inference_config(options)
        if options.learner.zero_stage == 3:
            model = load_partitioned(
                options.model, dtype, engine.device, config, attn_implementation=attention
            )
        else:
            model = load_model(options.model, dtype, engine.device, attn_implementation=attention)
        model.requires_grad_(False).eval()
        with gathered_in_forward(model):
            self._policy: nn.Module = Policy(model)
        if options.learner.zero_stage == 3:
            import deepspeed

            self._policy, *_ = deepspeed.initialize(model=self._policy, config=config)
            self._policy.eval()

    def logprobs(self, batch: TokenBatch, temperature: float) -> Tensor:
        with torch.no_grad():
            return response_logprobs(self._policy, batch, temperature)[0]


def _inference_config(options: LearnerOptions) -> dict[str, Any]:
    """Return DeepSpeed's configuration for inference with ZeRO 3: an engine without an optimizer. Its weights are where
    the learner's own are."""
    zero = deepspeed_config(options.learner, options.dtype)["zero_optimization"]
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {name: zero[name] for name in ("stage", "offload_param") if name in zero},
        "bf16": {"enabled": options.dtype == "bfloat16"},
        "steps_per_print": 10**9,
    }
