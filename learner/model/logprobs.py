"""Log-probabilities of response tokens under a policy: the tensors of a micro-batch, and what is asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cluster.core.types import TrainingSample
from learner.model.batching import MicroBatch, computed_tokens
from learner.model.shared_prefix import response_columns, shared_prefix_mask


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """A micro-batch as tensors. B counts responses, S the sequences that the model computes, L their columns.

    A sequence is a prompt, then the responses to it one after the other, each without its last token (nothing is
    predicted from that), then padding. Masks come from lengths; the padding's ids mean nothing (pad may equal eos).
    """

    input_ids_SL: Tensor
    position_ids_SL: Tensor | None
    """None where each sequence has one response, and a column is a position."""
    attention_mask: Tensor | None
    """Who sees whom (learner/model/shared_prefix.py): `response_columns` on CPU, int64 [S, 1, G, T], or
    `shared_prefix_mask`, bool [S, 1, Q, L]. None where causal attention is all that is needed."""
    predictors_N: Tensor
    """Where each response token is predicted from: index into the flattened [S · L], in the order of the mask."""
    response_ids_BT: Tensor
    response_mask_BT: Tensor
    sampler_logprobs_BT: Tensor
    advantages_B: Tensor
    scales_B: Tensor

    @classmethod
    def from_samples(cls, samples: Sequence[TrainingSample], device: torch.device) -> TokenBatch:
        """Each response in a sequence of its own."""
        return cls.from_micro_batch(tuple((sample,) for sample in samples), device)

    @classmethod
    def from_micro_batch(cls, micro_batch: MicroBatch, device: torch.device) -> TokenBatch:
        width = max(computed_tokens(bundle) for bundle in micro_batch)
        input_ids = np.zeros((len(micro_batch), width), dtype=np.int64)
        position_ids = np.zeros_like(input_ids)
        predictors: list[np.ndarray] = []
        for s, bundle in enumerate(micro_batch):
            prompt = bundle[0].prompt_token_ids
            input_ids[s, : len(prompt)] = prompt
            position_ids[s, : len(prompt)] = np.arange(len(prompt))
            column = len(prompt)
            for sample in bundle:
                end = column + len(sample.response_token_ids) - 1
                input_ids[s, column:end] = sample.response_token_ids[:-1]
                position_ids[s, column:end] = len(prompt) + np.arange(end - column)
                predictors.append(s * width + np.array([len(prompt) - 1, *range(column, end)]))
                column = end

        samples = [sample for bundle in micro_batch for sample in bundle]
        shape = (len(samples), max(len(sample.response_token_ids) for sample in samples))
        response_ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
        sampler_logprobs = np.zeros(shape, dtype=np.float32)
        for b, sample in enumerate(samples):
            length = len(sample.response_token_ids)
            response_ids[b, :length] = sample.response_token_ids
            sampler_logprobs[b, :length] = sample.sampler_logprobs
            mask[b, :length] = True

        shared = any(len(bundle) > 1 for bundle in micro_batch)
        return cls(
            input_ids_SL=torch.from_numpy(input_ids).to(device),
            position_ids_SL=torch.from_numpy(position_ids).to(device) if shared else None,
            attention_mask=_attention_mask(micro_batch, width, device) if shared else None,
            predictors_N=torch.from_numpy(np.concatenate(predictors)).to(device),
            response_ids_BT=torch.from_numpy(response_ids).to(device),
            response_mask_BT=torch.from_numpy(mask).to(device),
            sampler_logprobs_BT=torch.from_numpy(sampler_logprobs).to(device),
            advantages_B=torch.tensor(
                [sample.advantage for sample in samples], dtype=torch.float32, device=device
            ),
            scales_B=torch.tensor([sample.scale for sample in samples], dtype=torch.float32, device=device),
        )


def _attention_mask(micro_batch: MicroBatch, width: int, device: torch.device) -> Tensor | None:
    prompts = [len(bundle[0].prompt_token_ids) for bundle in micro_batch]
    responses = [[len(sample.response_token_ids) - 1 for sample in bundle] for bundle in micro_batch]
    if not any(map(any, responses)):  # every response is a single token: prompts alone are computed
        return None
    if device.type == "cpu":
        return response_columns(prompts, responses)
    return shared_prefix_mask(prompts, responses, width, device)


def response_logprobs(
    policy: torch.nn.Module, batch: TokenBatch, temperature: float, *, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Log π(response token) and the policy's entropy at each response position, at least float32 [B, T], 0 in the
    padding.

    Logits are divided by the sampling temperature. The entropy carries a gradient only if that is asked for.

    Args:
        policy: a `learner.model.policy.Policy`, or a DeepSpeed engine around one.
    """
    logprobs_N, entropy_N = policy(batch, temperature)
    if not entropy_gradient:
        entropy_N = entropy_N.detach()
    mask_BT = batch.response_mask_BT
    empty_BT = logprobs_N.new_zeros(mask_BT.shape)
    return empty_BT.masked_scatter(mask_BT, logprobs_N), empty_BT.masked_scatter(mask_BT, entropy_N)


def sequence_logprobs(policy: torch.nn.Module, token_ids: Sequence[int], device: torch.device) -> np.ndarray:
    """Log-probabilities at temperature 1 of `token_ids[1:]`, float32 [T - 1]; what a probe compares."""
    ids = np.asarray(token_ids, dtype=np.int64)
    sample = TrainingSample(
        ids[:1], ids[1:], np.zeros(len(ids) - 1, dtype=np.float32), advantage=0.0, scale=0.0
    )
    with torch.no_grad():
        logprobs_BT, _ = response_logprobs(policy, TokenBatch.from_samples([sample], device), 1.0)
    return logprobs_BT[0].float().cpu().numpy()
