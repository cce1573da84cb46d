"""The language model as the learner sees it: a micro-batch in, log-probabilities of its response tokens out."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cluster.core.config import LearnerConfig
from learner.model.batching import ForwardCost, Packing
from learner.model.logprobs import TokenBatch
from learner.model.model_probe import output_layer_is_plain, prefix_sharing_fault
from learner.model.prefix_support import prefix_obstacle
from learner.model.token_logprobs import TokenLogprobs

logger = logging.getLogger(__name__)


class Policy(nn.Module):
    """A causal language model of transformers, as one module: DeepSpeed's engine is built around this.

    Usage:
        policy, packing = prepare_policy(model, config.learner, config.model.max_context_tokens)
        micro_batches = shard(samples, 1, packing)[0]
        batch = TokenBatch.from_micro_batch(micro_batches[0], device)
        logprobs_BT, entropy_BT = response_logprobs(policy, batch, temperature)
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: PreTrainedModel = model
        self.head: TokenLogprobs | None = None
        """None where the model does more to its logits than one linear layer does."""
        if output_layer_is_plain(model):
            self.head = TokenLogprobs(model.get_output_embeddings())

    def forward(self, batch: TokenBatch, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of all response tokens in the order of the batch's mask, both [N]."""
        tokens_N = batch.response_ids_BT[batch.response_mask_BT]
        inputs: dict[str, Any] = {"input_ids": batch.input_ids_SL, "use_cache": False}
        if batch.position_ids_SL is not None:
            inputs["position_ids"] = batch.position_ids_SL
        if (mask := batch.attention_mask) is not None:
            inputs["attention_mask"] = self._additive(mask) if mask.dtype == torch.bool else mask
        if self.head is not None:
            hidden_SLD = self.model.base_model(**inputs).last_hidden_state
            return self.head(hidden_SLD.flatten(0, 1)[batch.predictors_N], tokens_N, temperature)
        width = batch.input_ids_SL.shape[1]
        columns_K, place_N = (batch.predictors_N % width).unique(return_inverse=True)
        logits_SKV = self.model(**inputs, logits_to_keep=columns_K).logits
        logits_NV = logits_SKV[batch.predictors_N // width, place_N]
        policy = torch.distributions.Categorical(
            logits=logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)) / temperature,
            validate_args=False,
        )
        return policy.log_prob(tokens_N), policy.entropy()

    def _additive(self, mask: Tensor) -> Tensor:
        """Once here, and not once per layer: attention would make it so from a boolean mask."""
        dtype = self.model.get_input_embeddings().weight.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def prepare_policy(
    model: PreTrainedModel, config: LearnerConfig, max_context_tokens: int | None
) -> tuple[Policy, Packing]:
    """Wrap `model` and find out how its micro-batches may be packed. Before DeepSpeed takes the parameters apart.

    Raises:
        ValueError: prefix sharing is asked for, and the model is not fit for it.
    """
    _switch_off_dropout(model)
    policy = Policy(model)
    if policy.head is None:
        logger.info(
            "%s does more to its logits than one linear layer does: those of all response tokens of a micro-batch are "
            "in memory at once (lower learner.micro_batch_tokens if it runs out)",
            type(model).__name__,
        )
    sharing = config.prefix_sharing
    if sharing != "off":
        text = model.config.get_text_config()
        known = text.to_dict() | {"layer_types": getattr(text, "layer_types", None)}
        obstacle = prefix_obstacle(known, max_context_tokens) or prefix_sharing_fault(model, policy)
        if obstacle and sharing == "on":
            raise ValueError(f"learner.prefix_sharing is on, but {obstacle}: set it to auto or off")
        if obstacle:
            logger.info("every response computes its prompt anew: %s", obstacle)
            sharing = "off"
    cost = forward_cost(model, masked=config.gpus_per_rank > 0)
    return policy, Packing(config.micro_batch_tokens, sharing, cost)


def _switch_off_dropout(model: PreTrainedModel) -> None:
    """The policy that learns must be the one that samples, and the sampler drops nothing."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def forward_cost(model: PreTrainedModel, masked: bool = False) -> ForwardCost:
    """By counting multiplications: 2 per parameter and token, 4 per pair of tokens and unit of attention width."""
    text = model.config.get_text_config()
    layers, heads = (getattr(text, name, 0) or 0 for name in ("num_hidden_layers", "num_attention_heads"))
    width = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
    outside = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    parameters = sum(p.numel() for p in model.parameters() if id(p) not in outside)
    return ForwardCost(per_pair=2 * layers * heads * width / max(parameters, 1), masked=masked)
