"""Attention for sequences that hold one prompt and several responses to it.

    prompt          a b c              columns 0, 1, 2          each response sees the prompt and itself,
    responses       p q │ r s          columns 3, 4 │ 5, 6      and no other response

Such a sequence is one ordinary forward pass of the model, with the positions that each response would have alone and
with this attention. It therefore works together with everything that works for an ordinary pass: gradient
checkpointing, ZeRO 3, adapters.

The attention pattern is passed in the argument in which transformers' models hand on a four-dimensional mask unchanged.
It holds the columns of the responses (`response_columns`) for `split_attention`, which computes every needed pair of
tokens once and no other pair. Without it, the attention is transformers' SDPA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from learner.model.split_attention import split_attention

ATTENTION = "shared_prefix"


def response_columns(prompt_tokens: Sequence[int], response_tokens: Sequence[Sequence[int]]) -> Tensor:
    """Return the columns of each response in its sequence, int64 [S, 1, G, T]; −1 marks absent tokens.

    Args:
        prompt_tokens: the number of prompt columns of each sequence, which are its first columns.
        response_tokens: the number of columns of each of its responses, which follow one after the other.
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


# --- The attention function of transformers' models.


def _attention(
    module: torch.nn.Module,
    query_SHLE: Tensor,
    key_SJKE: Tensor,
    value_SJKE: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention with the signature that transformers expects."""
    scaling = options.get("scaling") or query_SHLE.shape[-1] ** -0.5
    if attention_mask is not None and attention_mask.dtype == torch.int64:
        attended_SHLE = split_attention(query_SHLE, key_SJKE, value_SJKE, attention_mask, scaling)
        return attended_SHLE.transpose(1, 2).contiguous(), None
    if attention_mask is None and _kernel_lacks_grouped_queries(query_SHLE, key_SJKE):
        groups = query_SHLE.shape[1] // key_SJKE.shape[1]
        attended_SHLE = scaled_dot_product_attention(
            query_SHLE,
            repeat_kv(key_SJKE, groups),
            repeat_kv(value_SJKE, groups),
            is_causal=True,
            scale=scaling,
        )
        return attended_SHLE.transpose(1, 2).contiguous(), None
    attended: tuple[Tensor, None] = sdpa_attention_forward(
        module, query_SHLE, key_SJKE, value_SJKE, attention_mask, **options
    )
    return attended


def _kernel_lacks_grouped_queries(query_SHLE: Tensor, key_SJKE: Tensor) -> bool:
    """Return True for a whole sequence with grouped queries in float32 on a GPU. PyTorch's kernels with linear memory
    support grouped queries in 16 bits only, and PyTorch would compute all scores in memory instead."""
    return (
        query_SHLE.device.type == "cuda"
        and query_SHLE.dtype not in (torch.bfloat16, torch.float16)
        and query_SHLE.shape[1] != key_SJKE.shape[1]
        and query_SHLE.shape[2] == key_SJKE.shape[2] > 1
    )


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
