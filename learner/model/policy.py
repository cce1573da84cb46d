"""The policy: a language model that takes a micro-batch and returns the log-probabilities of its response tokens.

`learner/model/policy_setup.py` prepares a model for training; this module is used in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cluster.core.types import TrainingSample
from learner.model.batching import MicroBatch, computed_tokens
from learner.model.shared_prefix import response_columns
from learner.model.token_logprobs import TokenLogprobs


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """A micro-batch as tensors. B counts responses, S the sequences that the model computes, L their columns.

    A sequence consists of a prompt, the responses to it one after the other, each without its last token (from which
    nothing is predicted), and padding. Masks are computed from lengths; the token ids of the padding have no meaning
    (pad may equal eos).
    """

    input_ids_SL: Tensor
    position_ids_SL: Tensor | None
    """None if each sequence has one response, so that the column is the position."""
    attention_mask: Tensor | None
    """The attention pattern: `response_columns` (learner/model/shared_prefix.py), int64 [S, 1, G, T]. It is on CPU for
    every device, because the lengths of kernels' inputs follow from it. None if causal attention is sufficient."""
    predictors_N: Tensor
    """The column that predicts each response token: an index into the flattened [S · L], in the order of the mask."""
    response_ids_BT: Tensor
    response_mask_BT: Tensor
    sampler_logprobs_BT: Tensor
    advantages_B: Tensor
    scales_B: Tensor
    is_replay_B: Tensor
    """True for responses of an earlier batch, bool."""

    @classmethod
    def from_samples(cls, samples: Sequence[TrainingSample], device: torch.device) -> TokenBatch:
        """Build a batch in which each response has a sequence of its own."""
        return cls.from_micro_batch(tuple((sample,) for sample in samples), device)

    @classmethod
    def from_micro_batch(cls, micro_batch: MicroBatch, device: torch.device) -> TokenBatch:
        """Build a batch in which each bundle is one sequence."""
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
            attention_mask=_attention_mask(micro_batch) if shared else None,
            predictors_N=torch.from_numpy(np.concatenate(predictors)).to(device),
            response_ids_BT=torch.from_numpy(response_ids).to(device),
            response_mask_BT=torch.from_numpy(mask).to(device),
            sampler_logprobs_BT=torch.from_numpy(sampler_logprobs).to(device),
            advantages_B=torch.tensor(
                [sample.advantage for sample in samples], dtype=torch.float32, device=device
            ),
            scales_B=torch.tensor([sample.scale for sample in samples], dtype=torch.float32, device=device),
            is_replay_B=torch.tensor([sample.is_replay for sample in samples], device=device),
        )


def _attention_mask(micro_batch: MicroBatch) -> Tensor | None:
    prompts = [len(bundle[0].prompt_token_ids) for bundle in micro_batch]
    responses = [[len(sample.response_token_ids) - 1 for sample in bundle] for bundle in micro_batch]
    if not any(map(any, responses)):  # every response is a single token: only prompts are computed
        return None
    return response_columns(prompts, responses)


class Policy(nn.Module):
    """A causal language model of transformers as one module, around which DeepSpeed's engine is built.

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
        """None if the model computes its logits by more than one linear layer."""
        if output_layer_is_plain(model):
            self.head = TokenLogprobs(model.get_output_embeddings())

    def forward(self, batch: TokenBatch, temperature: float) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropies of all response tokens in the order of the batch's mask, both [N]."""
        tokens_N = batch.response_ids_BT[batch.response_mask_BT]
        inputs: dict[str, Any] = {"input_ids": batch.input_ids_SL, "use_cache": False}
        if batch.position_ids_SL is not None:
            inputs["position_ids"] = batch.position_ids_SL
        if batch.attention_mask is not None:
            inputs["attention_mask"] = batch.attention_mask
        if self.head is not None:
            hidden_SLD = self.model.base_model(**inputs).last_hidden_state
            found: tuple[Tensor, Tensor] = self.head(
                hidden_SLD.flatten(0, 1)[batch.predictors_N], tokens_N, temperature
            )
            return found
        width = batch.input_ids_SL.shape[1]
        columns_K, index_N = torch.unique(batch.predictors_N % width, return_inverse=True)
        logits_SKV = self.model(**inputs, logits_to_keep=columns_K).logits
        logits_NV: Tensor = logits_SKV[batch.predictors_N // width, index_N]
        policy: Any = torch.distributions.Categorical(
            logits=logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)) / temperature,
            validate_args=False,
        )
        return policy.log_prob(tokens_N), policy.entropy()


def response_logprobs(
    policy: torch.nn.Module, batch: TokenBatch, temperature: float, *, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Return log π(response token) and the policy's entropy at each response position, at least float32 [B, T], 0 in
    the padding.

    Logits are divided by the sampling temperature. The entropy has a gradient only with `entropy_gradient`.

    Args:
        policy: a `Policy`, or a DeepSpeed engine around one.
    """
    logprobs_N, entropy_N = policy(batch, temperature)
    if not entropy_gradient:
        entropy_N = entropy_N.detach()
    mask_BT = batch.response_mask_BT
    empty_BT = logprobs_N.new_zeros(mask_BT.shape)
    return empty_BT.masked_scatter(mask_BT, logprobs_N), empty_BT.masked_scatter(mask_BT, entropy_N)


def sequence_logprobs(policy: torch.nn.Module, token_ids: Sequence[int], device: torch.device) -> np.ndarray:
    """Return the log-probabilities of `token_ids[1:]` at temperature 1, float32 [T - 1], which a probe compares."""
    ids = np.asarray(token_ids, dtype=np.int64)
    sample = TrainingSample(
        ids[:1], ids[1:], np.zeros(len(ids) - 1, dtype=np.float32), advantage=0.0, scale=0.0
    )
    with torch.no_grad():
        logprobs_BT, _ = response_logprobs(policy, TokenBatch.from_samples([sample], device), 1.0)
    return logprobs_BT[0].float().cpu().numpy()


def output_layer_is_plain(model: PreTrainedModel) -> bool:
    """Return True if one linear layer computes the logits from the base model's hidden states, without scaling or
    capping.

    It compares tensors of a single pass if it can: on GPUs two passes may differ by rounding, and then the ranks could
    find different answers.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return False
    hidden: list[Any] = []
    seen: list[tuple[Any, Any]] = []
    hooks = [
        model.base_model.register_forward_hook(lambda _, inputs, output: hidden.append(output)),
        head.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output))),
    ]
    inputs = {"input_ids": torch.tensor([[1, 2, 3]], device=model.device), "use_cache": False}
    try:
        logits = without_gradient(model, lambda: model(**inputs).logits)
    finally:
        for hook in hooks:
            hook.remove()
    if not hidden:  # the model calls parts of its base model
        hidden.append(without_gradient(model, lambda: model.base_model(**inputs)))
    (base,), ((taken, given),) = hidden, seen
    return torch.equal(taken, base.last_hidden_state) and torch.equal(given.to(logits.dtype), logits)


def without_gradient(model: PreTrainedModel, ask: Callable[[], Any]) -> Any:
    """Call `ask` without gradient and dropout."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return ask()
    finally:
        model.train(training)
