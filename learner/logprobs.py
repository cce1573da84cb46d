"""Log-probabilities of response tokens under a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learner.weighing import Row


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows as tensors: prompts padded on the left, responses on the right, so that all responses begin at one column.

    Masks come from lengths; the ids in the padding mean nothing (pad may equal eos).
    """

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    response_ids_BT: Tensor
    response_mask_BT: Tensor
    sampler_logprobs_BT: Tensor
    advantages_B: Tensor
    scales_B: Tensor

    @classmethod
    def from_rows(cls, rows: Sequence[Row], device: torch.device) -> TokenBatch:
        prompt_width = max(len(row.prompt_token_ids) for row in rows)
        response_width = max(len(row.response_token_ids) for row in rows)
        shape = (len(rows), prompt_width + response_width)
        input_ids = np.zeros(shape, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=bool)
        sampler_logprobs = np.zeros((len(rows), response_width), dtype=np.float32)
        for i, row in enumerate(rows):
            start, length = prompt_width - len(row.prompt_token_ids), len(row.response_token_ids)
            input_ids[i, start:prompt_width] = row.prompt_token_ids
            input_ids[i, prompt_width : prompt_width + length] = row.response_token_ids
            attention_mask[i, start : prompt_width + length] = True
            sampler_logprobs[i, :length] = row.sampler_logprobs
        return cls(
            input_ids_BL=torch.from_numpy(input_ids).to(device),
            attention_mask_BL=torch.from_numpy(attention_mask).to(device),
            response_ids_BT=torch.from_numpy(input_ids[:, prompt_width:]).to(device),
            response_mask_BT=torch.from_numpy(attention_mask[:, prompt_width:]).to(device),
            sampler_logprobs_BT=torch.from_numpy(sampler_logprobs).to(device),
            advantages_B=torch.tensor([row.advantage for row in rows], dtype=torch.float32, device=device),
            scales_B=torch.tensor([row.scale for row in rows], dtype=torch.float32, device=device),
        )


def response_logprobs(
    model: torch.nn.Module, batch: TokenBatch, temperature: float, *, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Log π(response token) and the policy's entropy at each response position, both float32 [B, T].

    Logits are computed for response positions only and divided by the sampling temperature. The entropy carries a
    gradient if `entropy_gradient` says so, and then costs what a second set of log-probabilities would.
    """
    response_width = batch.response_ids_BT.shape[1]
    position_ids = (batch.attention_mask_BL.long().cumsum(dim=1) - 1).clamp(min=0)
    output = model(
        input_ids=batch.input_ids_BL,
        attention_mask=batch.attention_mask_BL.long(),
        position_ids=position_ids,
        use_cache=False,
        logits_to_keep=response_width + 1,
    )
    # The logits at position t predict token t + 1.
    all_logprobs = (output.logits[:, :-1].float() / temperature).log_softmax(dim=-1)
    chosen = all_logprobs.gather(-1, batch.response_ids_BT[:, :, None]).squeeze(-1)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = -(all_logprobs.exp() * all_logprobs).sum(dim=-1)
    return chosen, entropy


def sequence_logprobs(model: torch.nn.Module, token_ids: Sequence[int], device: torch.device) -> np.ndarray:
    """Log-probabilities at temperature 1 of `token_ids[1:]`, float32 [T - 1]; what a probe compares."""
    ids = torch.tensor([list(token_ids)], device=device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        return logits.log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1).cpu().numpy()
