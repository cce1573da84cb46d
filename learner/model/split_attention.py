"""Attention of one prompt and several responses to it, in three products in place of one with a mask. On CPU.

    prompt ─▶ prompt            causal                        out, lse of the prompt's columns
    responses ─▶ prompt         all of it                ─┐
    responses ─▶ themselves     causal, each on its own  ─┴▶  out, lse of the responses' columns

A softmax over two sets of keys is the mean of the softmaxes over each, weighed by the sums of their exponentials (`lse`
is their logarithm). For the way back nothing needs to be merged: given the merged output and lse, PyTorch's own
backward of attention over either set of keys yields that set's share of the gradient, which is how ring attention does
it too (Liu et al., arXiv 2310.01889). With one mask, pairs of different responses are computed and thrown away, and the
mask is read for every pair of the prompt's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def split_attention(
    query_SHLE: Tensor, key_SHLE: Tensor, value_SHLE: Tensor, columns_SGT: Tensor, scaling: float
) -> Tensor:
    """What each column sees, [S, H, L, E]; of padding, something finite.

    Args:
        query_SHLE: of all columns: a prompt, its responses, padding.
        key_SHLE: with as many heads.
        value_SHLE: likewise.
        columns_SGT: see `learner.model.shared_prefix.response_columns`.
        scaling: of the scores.
    """
    return _SplitAttention.apply(query_SHLE, key_SHLE, value_SHLE, columns_SGT, scaling)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the prompts and responses of a micro-batch are."""

    prompt: int
    """P, columns of the longest prompt."""
    beyond_SP: Tensor | None
    """Columns of those that are not the sequence's own prompt; None if there are none."""
    sequence_N: Tensor
    column_N: Tensor
    """Of each response token."""
    place_N: Tensor
    """The same tokens in [S · G · T]."""
    shape: tuple[int, int, int]
    """S, G, T."""

    @classmethod
    def of(cls, columns_SGT: Tensor, width: int) -> _Layout:
        there_SGT = columns_SGT >= 0
        prompt_S = torch.where(there_SGT, columns_SGT, width).flatten(1).amin(dim=1)
        prompt = int(prompt_S.max())
        beyond_SP = torch.arange(prompt) >= prompt_S[:, None]
        return cls(
            prompt=prompt,
            beyond_SP=beyond_SP if bool(beyond_SP.any()) else None,
            sequence_N=there_SGT.nonzero()[:, 0],
            column_N=columns_SGT[there_SGT],
            place_N=there_SGT.flatten().nonzero().squeeze(-1),
            shape=(columns_SGT.shape[0], columns_SGT.shape[1], columns_SGT.shape[2]),
        )

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """To be added to scores of prompt columns, [S, 1, 1, P]."""
        if self.beyond_SP is None:
            return None
        return torch.zeros(self.beyond_SP.shape, dtype=dtype).masked_fill_(self.beyond_SP, -torch.inf)[
            :, None, None
        ]

    def take(self, whole_SHLX: Tensor) -> Tensor:
        """The responses' columns, [S · G, H, T, X], zeros where there is none."""
        s, g, t = self.shape
        taken = whole_SHLX.new_zeros(s * g * t, whole_SHLX.shape[1], whole_SHLX.shape[3])
        taken[self.place_N] = whole_SHLX[self.sequence_N, :, self.column_N]
        return taken.view(s * g, t, *taken.shape[1:]).transpose(1, 2)

    def put_(self, whole_SHLX: Tensor, taken: Tensor, *, add: bool = False) -> None:
        """Back into their columns."""
        values_NHX = taken.transpose(1, 2).flatten(0, 1)[self.place_N]
        if add:
            values_NHX = values_NHX + whole_SHLX[self.sequence_N, :, self.column_N]
        whole_SHLX[self.sequence_N, :, self.column_N] = values_NHX

    def side_by_side(self, taken: Tensor) -> Tensor:
        """From one row per response to one per sequence: [S · G, H, T, X] to [S, H, G · T, X]."""
        s, g, t = self.shape
        return taken.unflatten(0, (s, g)).transpose(1, 2).reshape(s, -1, g * t, taken.shape[3])

    def one_by_one(self, rows: Tensor) -> Tensor:
        """The way back."""
        s, g, t = self.shape
        return rows.view(s, -1, g, t, rows.shape[3]).transpose(1, 2).flatten(0, 1)


class _SplitAttention(torch.autograd.Function):
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
        if layout.beyond_SP is not None:  # what was put over the prompt's output there
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
