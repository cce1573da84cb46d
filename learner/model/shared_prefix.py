"""Attention for sequences that hold one prompt and several responses to it.

    prompt          a b c              columns 0, 1, 2          each response sees the prompt and itself,
    responses       p q │ r s          columns 3, 4 │ 5, 6      and no other response

Such a sequence is one ordinary forward pass of the model, with the positions that each response would have alone and
with this attention. It therefore works together with everything that works for an ordinary pass: gradient
checkpointing, ZeRO 3, adapters.

The attention pattern is passed in the argument in which transformers' models hand on a four-dimensional mask unchanged.
On CPU it holds the columns of the responses (`response_columns`) for `split_attention`, which computes every needed
pair of tokens once and no other pair. Elsewhere it is a mask (`shared_prefix_mask`) for PyTorch's own attention.
Without either, the attention is transformers' SDPA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

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


def shared_prefix_mask(
    prompt_tokens: Sequence[int], response_tokens: Sequence[Sequence[int]], width: int, device: torch.device
) -> Tensor:
    """Return a mask that is True where a query may attend, bool [S, 1, Q, L]. Its rows are the last
    Q = L − min(prompt_tokens) of the L = `width` columns.

    Args:
        prompt_tokens: the number of prompt columns of each sequence, which are its first columns.
        response_tokens: the number of columns of each of its responses, which follow one after the other. The remaining
            columns are padding.
        width: the number of columns of all sequences.
        device: the device of the mask.
    """
    first = min(prompt_tokens)
    # 0 for a prompt, 1, 2, … for its responses, −1 for padding, which attends to the prompt and is not attended to.
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


# --- Split attention, on CPU.

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def split_attention(
    query_SHLE: Tensor, key_SHLE: Tensor, value_SHLE: Tensor, columns_SGT: Tensor, scaling: float
) -> Tensor:
    """Return the attention output of each column, [S, H, L, E]. The output of padding is finite and has no meaning.

    It is computed on CPU, in three products instead of one with a mask:

        prompt ─▶ prompt            causal                        out, lse of the prompt's columns
        responses ─▶ prompt         all of it                ─┐
        responses ─▶ themselves     causal, each on its own  ─┴▶  out, lse of the responses' columns

    A softmax over two sets of keys is the mean of the softmaxes over each set, weighted by the sums of their
    exponentials (`lse` is the logarithm of a sum). The backward pass needs no merging: given the merged output and lse,
    PyTorch's own backward of attention over one set of keys returns that set's part of the gradient. Ring attention
    uses the same property (Liu et al., arXiv 2310.01889). With a single mask, pairs of different responses would be
    computed and discarded, and the mask would be read for every pair of prompt tokens.

    Args:
        query_SHLE: the queries of all columns: a prompt, its responses, padding.
        key_SHLE: the keys, with the same number of heads.
        value_SHLE: the values, with the same number of heads.
        columns_SGT: the columns of the responses, see `response_columns`.
        scaling: the factor of the scores.
    """
    apply: Any = _SplitAttention.apply
    output: Tensor = apply(query_SHLE, key_SHLE, value_SHLE, columns_SGT, scaling)
    return output


@dataclass(frozen=True, slots=True)
class _Layout:
    """The positions of the prompts and responses of a micro-batch."""

    prompt: int
    """P, the number of columns of the longest prompt."""
    beyond_SP: Tensor | None
    """True for those of the P columns that are not in the sequence's own prompt; None if all are."""
    sequence_N: Tensor
    """The sequence of each response token."""
    column_N: Tensor
    """The column of each response token in its sequence."""
    index_N: Tensor
    """The index of each response token in the flattened [S · G · T]."""
    shape: tuple[int, int, int]
    """S, G, T."""

    @classmethod
    def of(cls, columns_SGT: Tensor, width: int) -> _Layout:
        """Derive the layout from the columns of the responses in sequences of `width` columns."""
        there_SGT = columns_SGT >= 0
        prompt_S = torch.where(there_SGT, columns_SGT, width).flatten(1).amin(dim=1)
        prompt = int(prompt_S.max())
        beyond_SP = torch.arange(prompt) >= prompt_S[:, None]
        return cls(
            prompt=prompt,
            beyond_SP=beyond_SP if bool(beyond_SP.any()) else None,
            sequence_N=there_SGT.nonzero()[:, 0],
            column_N=columns_SGT[there_SGT],
            index_N=there_SGT.flatten().nonzero().squeeze(-1),
            shape=(columns_SGT.shape[0], columns_SGT.shape[1], columns_SGT.shape[2]),
        )

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Return the mask to add to the scores of prompt columns, [S, 1, 1, P], or None if there is nothing to mask."""
        if self.beyond_SP is None:
            return None
        return torch.zeros(self.beyond_SP.shape, dtype=dtype).masked_fill_(self.beyond_SP, -torch.inf)[
            :, None, None
        ]

    def take(self, whole_SHLX: Tensor) -> Tensor:
        """Gather the responses' columns, [S · G, H, T, X], with zeros for absent tokens."""
        s, g, t = self.shape
        taken = whole_SHLX.new_zeros(s * g * t, whole_SHLX.shape[1], whole_SHLX.shape[3])
        taken[self.index_N] = whole_SHLX[self.sequence_N, :, self.column_N]
        return taken.view(s * g, t, *taken.shape[1:]).transpose(1, 2)

    def put_(self, whole_SHLX: Tensor, taken: Tensor, *, add: bool = False) -> None:
        """Write gathered values back into their columns of `whole_SHLX`, or add them to its values."""
        values_NHX = taken.transpose(1, 2).flatten(0, 1)[self.index_N]
        if add:
            values_NHX = values_NHX + whole_SHLX[self.sequence_N, :, self.column_N]
        whole_SHLX[self.sequence_N, :, self.column_N] = values_NHX

    def side_by_side(self, taken: Tensor) -> Tensor:
        """Regroup from one row per response to one per sequence: [S · G, H, T, X] to [S, H, G · T, X]."""
        s, g, t = self.shape
        return taken.view(s, g, *taken.shape[1:]).transpose(1, 2).reshape(s, -1, g * t, taken.shape[3])

    def one_by_one(self, rows: Tensor) -> Tensor:
        """Regroup from one row per sequence to one per response: the inverse of `side_by_side`."""
        s, g, t = self.shape
        return rows.view(s, -1, g, t, rows.shape[3]).transpose(1, 2).flatten(0, 1)


class _SplitAttention(torch.autograd.Function):
    """The three products of `split_attention` and their gradients."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, columns_SGT: Tensor, scaling: float
    ) -> Tensor:
        layout = _Layout.of(columns_SGT, query.shape[2])
        p = layout.prompt
        own = [layout.take(tensor) for tensor in (query, key, value)]
        prompt, prompt_lse = _forward(
            query[:, :, :p], key[:, :, :p], value[:, :, :p], is_causal=True, scale=scaling
        )
        on_prompt, on_prompt_lse = _forward(
            layout.side_by_side(own[0]),
            key[:, :, :p],
            value[:, :, :p],
            attn_mask=layout.mask(query.dtype),
            scale=scaling,
        )
        on_own, on_own_lse = _forward(*own, is_causal=True, scale=scaling)

        on_prompt, on_prompt_lse = (
            layout.one_by_one(on_prompt),
            layout.one_by_one(on_prompt_lse[..., None])[..., 0],
        )
        lse = torch.logaddexp(on_prompt_lse, on_own_lse)
        responses = on_prompt * (on_prompt_lse - lse).exp()[..., None].to(query.dtype)
        responses += on_own * (on_own_lse - lse).exp()[..., None].to(query.dtype)

        whole = torch.zeros_like(query)
        whole[:, :, :p] = prompt
        layout.put_(whole, responses)
        ctx.save_for_backward(query, key, value, prompt, prompt_lse, responses, lse)
        ctx.layout, ctx.scaling = layout, scaling
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, prompt, prompt_lse, responses, lse = ctx.saved_tensors
        layout: _Layout = ctx.layout
        p = layout.prompt
        grad_prompt = grad[:, :, :p]
        if layout.beyond_SP is not None:  # the responses' output was written over the prompt's there
            grad_prompt = grad_prompt.masked_fill(layout.beyond_SP[:, None, :, None], 0.0)
        grad_responses = layout.take(grad)
        own = [layout.take(tensor) for tensor in (query, key, value)]

        of_prompt = _backward(
            grad_prompt.contiguous(),
            query[:, :, :p],
            key[:, :, :p],
            value[:, :, :p],
            prompt,
            prompt_lse,
            0.0,
            True,
            scale=ctx.scaling,
        )
        of_on_prompt = _backward(
            layout.side_by_side(grad_responses),
            layout.side_by_side(own[0]),
            key[:, :, :p],
            value[:, :, :p],
            layout.side_by_side(responses),
            layout.side_by_side(lse[..., None])[..., 0],
            0.0,
            False,
            attn_mask=layout.mask(query.dtype),
            scale=ctx.scaling,
        )
        of_own = _backward(grad_responses, *own, responses, lse, 0.0, True, scale=ctx.scaling)

        grads = [torch.zeros_like(tensor) for tensor in (query, key, value)]
        for whole, part in zip(grads, of_prompt, strict=True):
            whole[:, :, :p] = part
        for whole, part in zip(grads[1:], of_on_prompt[1:], strict=True):
            whole[:, :, :p] += part
        layout.put_(grads[0], of_own[0] + layout.one_by_one(of_on_prompt[0]), add=True)
        for whole, part in zip(grads[1:], of_own[1:], strict=True):
            layout.put_(whole, part, add=True)
        return (*grads, None, None)


# --- The attention function of transformers' models.


def _attention(
    module: torch.nn.Module,
    query_SHLE: Tensor,
    key_SKLE: Tensor,
    value_SKLE: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention with the signature that transformers expects. A mask with fewer rows than there are queries
    belongs to the last queries."""
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
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_SHLE, key_SKLE, value_SKLE, attention_mask, **options
        )
        return attended
    prompt_SLHE, _ = sdpa_attention_forward(
        module, query_SHLE[:, :, :first], key_SKLE[:, :, :first], value_SKLE[:, :, :first], None, **options
    )
    rest_SLHE, _ = sdpa_attention_forward(
        module, query_SHLE[:, :, first:], key_SKLE, value_SKLE, attention_mask, **options
    )
    return torch.cat([prompt_SLHE, rest_SLHE], dim=1), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
