"""What a model says of itself when it is asked for some log-probabilities. Done once, before training."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from cluster.core.types import TrainingSample
from learner.model.batching import MicroBatch
from learner.model.logprobs import TokenBatch, response_logprobs
from learner.model.shared_prefix import ATTENTION

_LARGEST_DIFFERENCE = {torch.float64: 1e-3, torch.float32: 1e-3}
"""Between log-probabilities that are the same but for rounding, in mean. In 16 bits:"""
_LARGEST_DIFFERENCE_16 = 0.25


def output_layer_is_plain(model: PreTrainedModel) -> bool:
    """Whether the logits are what one linear layer makes of the base model's hidden states: not scaled, not capped."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return False
    seen: list[tuple[Any, Any]] = []
    hook = head.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    inputs = {"input_ids": torch.tensor([[1, 2, 3]]), "use_cache": False}
    try:
        logits = _quietly(model, lambda: model(**inputs).logits)
    finally:
        hook.remove()
    hidden = _quietly(model, lambda: model.base_model(**inputs).last_hidden_state)
    ((taken, given),) = seen
    return torch.equal(taken, hidden) and torch.equal(given.to(logits.dtype), logits)


def prefix_sharing_fault(model: PreTrainedModel, policy: nn.Module) -> str | None:
    """Make the model's attention ready for shared prefixes, and try it. What is wrong with it, or None.

    Where something is, the model is left with the attention that it had. `policy` is the `Policy` around it.
    """
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return f"{type(model).__name__} takes no positions"
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    if model.config._attn_implementation != ATTENTION:
        return f"{type(model).__name__} takes no attention function but its own"
    try:
        fault = _quietly(model, lambda: _differences(model, policy))
    except Exception as error:  # a model's code may come to grief over such a mask in a way of its own
        fault = f"{type(model).__name__} cannot compute it ({type(error).__name__}: {error})"
    if fault is not None:
        model.set_attn_implementation(before)
    return fault


def _differences(model: PreTrainedModel, policy: nn.Module) -> str | None:
    name = type(model).__name__
    bundles = _bundles(model.get_input_embeddings().num_embeddings)
    shared = _logprobs(policy, bundles)
    alone = _logprobs(policy, tuple((sample,) for bundle in bundles for sample in bundle))
    limit = _LARGEST_DIFFERENCE.get(model.dtype, _LARGEST_DIFFERENCE_16)
    if not (difference := _mean_difference(shared, alone)) <= limit:
        return f"{name} then gives log-probabilities that differ by {difference:.2g} in mean"
    # The others are computed in the same shapes as before, so this is sharp in 16 bits too. (0 but for experts, which
    # compute the tokens that they get in one product.)
    first, *others = bundles[0]
    changed = replace(first, response_token_ids=first.response_token_ids[::-1].copy())
    beside_another = _logprobs(policy, ((changed, *others), *bundles[1:]))
    if not (difference := _mean_difference(shared[1:], beside_another[1:])) <= limit / 10:
        return f"{name} then lets responses see each other (by {difference:.2g} in mean)"
    return None


def _mean_difference(some: list[np.ndarray], others: list[np.ndarray]) -> float:
    return float(np.abs(np.concatenate(some) - np.concatenate(others)).mean())


def _bundles(vocabulary: int) -> MicroBatch:
    """Two of different lengths, so that there is padding too."""
    generator = np.random.default_rng(0)

    def bundle(prompt: int, *responses: int) -> tuple[TrainingSample, ...]:
        prompt_ids = generator.integers(0, vocabulary, prompt)
        return tuple(
            TrainingSample(
                prompt_ids, generator.integers(0, vocabulary, length), np.zeros(length, np.float32), 0.0, 0.0
            )
            for length in responses
        )

    return bundle(9, 6, 1, 5), bundle(7, 3, 4)


def _logprobs(policy: nn.Module, micro_batch: MicroBatch) -> list[np.ndarray]:
    batch = TokenBatch.from_micro_batch(micro_batch, torch.device("cpu"))
    logprobs_BT, _ = response_logprobs(policy, batch, 1.0)
    return [sample[mask].numpy() for sample, mask in zip(logprobs_BT, batch.response_mask_BT, strict=True)]


def _quietly(model: PreTrainedModel, ask: Callable[[], Any]) -> Any:
    """Without gradient and dropout."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return ask()
    finally:
        model.train(training)
