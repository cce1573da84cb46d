"""The set-up of a policy before training: dropout off, cost of a forward pass, and a test of prefix sharing.

The test computes log-probabilities with the model itself, once, before DeepSpeed's engine is built around it. It runs
where the model is, on the device and with the attention that training will use.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from cluster.core.config import LearnerConfig
from cluster.core.types import TrainingSample
from learner.model.batching import ForwardCost, MicroBatch, Packing
from learner.model.partitioned import gathered_in_forward, whole_size
from learner.model.policy import Policy, TokenBatch, response_logprobs, without_gradient
from learner.model.prefix_support import prefix_obstacle
from learner.model.shared_prefix import ATTENTION

logger = logging.getLogger(__name__)

_LARGEST_DIFFERENCE = {torch.float64: 1e-3, torch.float32: 1e-3}
"""The largest mean difference between log-probabilities that differ by rounding only."""
_LARGEST_DIFFERENCE_16 = 0.25
"""The same limit for 16-bit types."""


def prepare_policy(
    model: PreTrainedModel, config: LearnerConfig, max_context_tokens: int | None
) -> tuple[Policy, Packing]:
    """Wrap `model` as a policy, and determine how its micro-batches may be packed. Called before DeepSpeed builds its
    engine, with the model on the device that it will be trained on. A collective if ZeRO 3 has partitioned the model.

    Raises:
        ValueError: if prefix sharing is switched on and the model does not support it.
    """
    _switch_off_dropout(model)
    with gathered_in_forward(model):
        policy = Policy(model)
    if policy.head is None:
        logger.info(
            "%s computes its logits by more than one linear layer: the logits of all response tokens of a micro-batch "
            "are in memory at once (lower learner.micro_batch_tokens if the memory is too small)",
            type(model).__name__,
        )
    sharing = config.prefix_sharing
    if sharing != "off":
        text = model.config.get_text_config()
        known = text.to_dict() | {"layer_types": getattr(text, "layer_types", None)}
        obstacle = prefix_obstacle(known, max_context_tokens)
        if obstacle is None:
            with gathered_in_forward(policy):
                obstacle = prefix_sharing_fault(model, policy)
        if obstacle and sharing == "on":
            raise ValueError(f"learner.prefix_sharing is on, but {obstacle}: set it to auto or off")
        if obstacle:
            logger.info("prefix sharing is off, every response computes its prompt again: %s", obstacle)
            sharing = "off"
    cost = forward_cost(model, packed=config.gpus_per_rank > 0)
    return policy, Packing(config.micro_batch_tokens, sharing, cost)


def _switch_off_dropout(model: PreTrainedModel) -> None:
    """Switch off dropout in all modules: the trained policy must be the sampled one, and the sampler has no dropout."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def forward_cost(model: PreTrainedModel, packed: bool = False) -> ForwardCost:
    """Estimate the cost of a forward pass by counting multiplications: 2 per parameter and token, 4 per pair of tokens
    and unit of attention width."""
    text = model.config.get_text_config()
    layers, heads = (getattr(text, name, 0) or 0 for name in ("num_hidden_layers", "num_attention_heads"))
    width = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
    outside = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    parameters = sum(whole_size(p) for p in model.parameters() if id(p) not in outside)
    return ForwardCost(per_pair=2 * layers * heads * width / max(parameters, 1), packed=packed)


def prefix_sharing_fault(model: PreTrainedModel, policy: nn.Module) -> str | None:
    """Switch the model's attention to shared prefixes, and test it. Returns the fault that was found, or None.

    After a fault the model has its previous attention again. `policy` is the `Policy` around it.
    """
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return f"{type(model).__name__} does not accept positions"
    before = model.config._attn_implementation
    own = without_gradient(model, lambda: _logprobs_alone(model, policy))
    model.set_attn_implementation(ATTENTION)
    if model.config._attn_implementation != ATTENTION:
        return f"{type(model).__name__} accepts no attention function but its own"
    try:
        fault: str | None = without_gradient(model, lambda: _differences(model, policy, own))
    except Exception as error:  # a model's code may fail in any way on such a mask
        fault = f"{type(model).__name__} cannot compute it ({type(error).__name__}: {error})"
    if fault is not None:
        model.set_attn_implementation(before)
    return fault


def _differences(model: PreTrainedModel, policy: nn.Module, own: list[np.ndarray]) -> str | None:
    """Compare the attention of shared prefixes with itself, and with the log-probabilities of the model's own one."""
    name = type(model).__name__
    bundles = _bundles(model.get_input_embeddings().num_embeddings)
    shared = _logprobs(policy, bundles, model.device)
    alone = _logprobs_alone(model, policy)
    limit = _LARGEST_DIFFERENCE.get(model.dtype, _LARGEST_DIFFERENCE_16)
    if not (difference := _mean_difference(own, alone)) <= limit:
        return f"{name} computes another attention of its own (log-probabilities differ by {difference:.2g} on average)"
    if not (difference := _mean_difference(shared, alone)) <= limit:
        return f"{name} then gives log-probabilities that differ by {difference:.2g} on average"
    # The other responses are computed in the same shapes as before, so this comparison is exact in 16 bits too (except
    # for mixtures of experts, which compute all tokens of an expert in one product).
    first, *others = bundles[0]
    changed = replace(first, response_token_ids=first.response_token_ids[::-1].copy())
    beside_another = _logprobs(policy, ((changed, *others), *bundles[1:]), model.device)
    if not (difference := _mean_difference(shared[1:], beside_another[1:])) <= limit / 10:
        return f"{name} then lets responses see each other (by {difference:.2g} on average)"
    return None


def _mean_difference(some: list[np.ndarray], others: list[np.ndarray]) -> float:
    return float(np.abs(np.concatenate(some) - np.concatenate(others)).mean())


def _bundles(vocabulary: int) -> MicroBatch:
    """Draw two bundles of different lengths, so that there is padding too."""
    generator = np.random.default_rng(0)

    def drawn(length: int) -> np.ndarray:
        return generator.integers(0, vocabulary, length)

    def bundle(prompt: int, *responses: int) -> tuple[TrainingSample, ...]:
        prompt_ids = drawn(prompt)
        return tuple(
            TrainingSample(prompt_ids, drawn(length), np.zeros(length, np.float32), advantage=0.0, scale=0.0)
            for length in responses
        )

    return bundle(9, 6, 1, 5), bundle(7, 3, 4)


def _logprobs_alone(model: PreTrainedModel, policy: nn.Module) -> list[np.ndarray]:
    bundles = _bundles(model.get_input_embeddings().num_embeddings)
    return _logprobs(policy, tuple((sample,) for bundle in bundles for sample in bundle), model.device)


def _logprobs(policy: nn.Module, micro_batch: MicroBatch, device: torch.device) -> list[np.ndarray]:
    batch = TokenBatch.from_micro_batch(micro_batch, device)
    logprobs_BT, _ = response_logprobs(policy, batch, 1.0)
    return [
        sample[mask].cpu().numpy() for sample, mask in zip(logprobs_BT, batch.response_mask_BT, strict=True)
    ]
