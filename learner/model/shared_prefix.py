"""Attention for sequences that hold one prompt and several responses to it.

    prompt          a b c              columns 0, 1, 2          every response sees the prompt and itself,
    responses       p q │ r s          columns 3, 4 │ 5, 6      and none of the others

Such a sequence is one ordinary forward pass of the model: with the positions that each response would have alone, and
with this attention. So it goes together with whatever works for an ordinary pass: gradient checkpointing, ZeRO 3,
adapters.

What tells it who sees whom goes where transformers' models hand on a mask of four dimensions as it is: on CPU the
columns of the responses (`response_columns`; learner/model/split_attention.py computes no pair twice and none in vain),
elsewhere a mask (`shared_prefix_mask`) for PyTorch's own attention. Without either it is transformers' SDPA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from learner.model.split_attention import split_attention

ATTENTION = "shared_prefix"


def response_columns(prompt_tokens: Sequence[int], response_tokens: Sequence[Sequence[int]]) -> Tensor:
    """Where each response is in its sequence, int64 [S, 1, G, T], −1 where there is nothing.

    Args:
        prompt_tokens: of each sequence; its first columns.
        response_tokens: the columns of each of its responses, one after the other.
    """
    most = max(map(len, response_tokens))
    longest = max((columns for each in response_tokens for columns in each), default=0)
    columns_SGT = torch.full((len(prompt_tokens), most, longest), -1)
    for columns_GT, prompt, responses in zip(columns_SGT, prompt_tokens, response_tokens, strict=True):
        start = prompt
        for columns_T, length in zip(columns_GT, responses, strict=False):
            columns_T[:length] = torch.arange(start, start + length)
            start += length
    return columns_SGT[:, None]


def shared_prefix_mask(
    prompt_tokens: Sequence[int], response_tokens: Sequence[Sequence[int]], width: int, device: torch.device
) -> Tensor:
    """True where a query may look, bool [S, 1, Q, L]: for the last Q = L − min(prompt_tokens) of L = `width` columns.

    Args:
        prompt_tokens: of each sequence; its first columns.
        response_tokens: the columns of each of its responses, one after the other; what is left is padding.
        width: columns of all sequences.
        device: where the mask is wanted.
    """
    first = min(prompt_tokens)
    # 0 for a prompt, 1, 2, … for its responses, −1 for padding, which looks at the prompt and is not looked at.
    part_SL = torch.full((len(prompt_tokens), width), -1)
    for row_L, prompt, responses in zip(part_SL, prompt_tokens, response_tokens, strict=True):
        row_L[:prompt] = 0
        numbers = torch.arange(1, len(responses) + 1).repeat_interleave(
            torch.tensor(responses, dtype=torch.long)
        )
        row_L[prompt : prompt + len(numbers)] = numbers
    part_SL = part_SL.to(device)
    column_L = torch.arange(width, device=device)
    causal_QL = column_L[first:, None] >= column_L
    seen_SQL = (part_SL[:, None, :] == 0) | (part_SL[:, first:, None] == part_SL[:, None, :])
    return (causal_QL & seen_SQL)[:, None]


def _attention(
    module: torch.nn.Module,
    query_SHLE: Tensor,
    key_SKLE: Tensor,
    value_SKLE: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As every attention function of transformers. A mask with fewer rows than there are queries is for the last."""
    if attention_mask is not None and attention_mask.dtype == torch.int64:
        groups = query_SHLE.shape[1] // key_SKLE.shape[1]
        attended_SHLE = split_attention(
            query_SHLE,
            repeat_kv(key_SKLE, groups),
            repeat_kv(value_SKLE, groups),
            attention_mask[:, 0],
            options.get("scaling") or query_SHLE.shape[-1] ** -0.5,
        )
        return attended_SHLE.transpose(1, 2).contiguous(), None
    first = 0 if attention_mask is None else query_SHLE.shape[2] - attention_mask.shape[2]
    if first == 0:
        return sdpa_attention_forward(module, query_SHLE, key_SKLE, value_SKLE, attention_mask, **options)
    prompt_SLHE, _ = sdpa_attention_forward(
        module, query_SHLE[:, :, :first], key_SKLE[:, :, :first], value_SKLE[:, :, :first], None, **options
    )
    rest_SLHE, _ = sdpa_attention_forward(
        module, query_SHLE[:, :, first:], key_SKLE, value_SKLE, attention_mask, **options
    )
    return torch.cat([prompt_SLHE, rest_SLHE], dim=1), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
