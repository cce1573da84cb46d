"""The ways in which attention of shared prefixes can be computed on a device, for the parts that compare them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from learner.model.batching import MicroBatch
from learner.model.policy import TokenBatch
from learner.model.shared_prefix import shared_prefix_mask

Build = Callable[[MicroBatch, torch.device], TokenBatch]


def shared_ways(device: torch.device) -> dict[str, Build]:
    """Return a function per way that builds a batch which is computed in this way. `default` is what the learner takes;
    on CPU there is also the way of GPUs."""
    ways: dict[str, Build] = {"default": TokenBatch.from_micro_batch}
    if device.type == "cpu":
        ways["mask, as on GPUs"] = _masked
    return ways


def _masked(micro_batch: MicroBatch, device: torch.device) -> TokenBatch:
    batch = TokenBatch.from_micro_batch(micro_batch, device)
    prompts = [len(bundle[0].prompt_token_ids) for bundle in micro_batch]
    responses = [[len(sample.response_token_ids) - 1 for sample in bundle] for bundle in micro_batch]
    mask = shared_prefix_mask(prompts, responses, batch.input_ids_SL.shape[1], device)
    return replace(batch, attention_mask=mask)
