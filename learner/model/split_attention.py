"""Attention of shared prefixes in three products, without a mask between responses.

    prompts ─▶ prompts              causal                        output, lse of the prompts' columns
    responses ─▶ their prompt       all of it                ─┐
    responses ─▶ themselves         causal, each on its own  ─┴▶  output, lse of the responses' columns

A softmax over two sets of keys is the mean of the softmaxes over each set, weighted by the sums of their exponentials
(`lse` is the logarithm of a sum). The backward pass needs no merging: given the merged output and lse, PyTorch's own
backward of attention over one set of keys returns that set's part of the gradient. Ring attention uses the same
property (Liu et al., arXiv 2310.01889). With a single mask, pairs of different responses would be computed and
discarded, and the mask would be read for every pair of prompt tokens.

The composition is the same everywhere. The layout of the tokens within a product differs, because the kernels do
(`learner/model/attention_layouts.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.integrations.sdpa_attention import repeat_kv

from learner.model.attention_kernels import packed_kernel
from learner.model.attention_layouts import Layout, Product, layout_of

_HEAD_DIM_ALIGNMENT = 8
"""The kernels of GPUs read this many numbers of a head at a time."""


def split_attention(
    query_SHLE: Tensor, key_SJLE: Tensor, value_SJLE: Tensor, columns_S1GT: Tensor, scaling: float
) -> Tensor:
    """Return the attention output of each column, [S, H, L, E]. The output of padding is finite and has no meaning.

    Args:
        query_SHLE: the queries of all columns: a prompt, its responses, padding.
        key_SJLE: the keys; the number of heads H is a multiple of J.
        value_SJLE: the values, with as many heads.
        columns_S1GT: the columns of the responses, see `learner.model.shared_prefix.response_columns`; on CPU.
        scaling: the factor of the scores.
    """
    apply: Any = _SplitAttention.apply
    kernel = packed_kernel(query_SHLE)
    layout = layout_of(columns_S1GT, query_SHLE.shape[2], query_SHLE.device, kernel)
    output: Tensor
    if kernel is None:
        groups = query_SHLE.shape[1] // key_SJLE.shape[1]
        key_SHLE, value_SHLE = repeat_kv(key_SJLE, groups), repeat_kv(value_SJLE, groups)
        output = apply(query_SHLE, key_SHLE, value_SHLE, layout, scaling)
        return output
    head_dim = query_SHLE.shape[-1]
    if missing := -head_dim % _HEAD_DIM_ALIGNMENT:
        query_SHLE, key_SJLE, value_SJLE = (
            functional.pad(each, (0, missing)) for each in (query_SHLE, key_SJLE, value_SJLE)
        )
    output = apply(query_SHLE, key_SJLE, value_SJLE, layout, scaling)
    return output[..., :head_dim]


class _SplitAttention(torch.autograd.Function):
    """The three products of the module's docstring, and their gradients."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float
    ) -> Tensor:
        prompt_query, prompt_key, prompt_value = (layout.prompts(each) for each in (query, key, value))
        own_query, own_key, own_value = (layout.responses(each) for each in (query, key, value))
        prompt, prompt_lse = layout.forward(Product.PROMPTS, prompt_query, prompt_key, prompt_value, scaling)
        seen, seen_lse = layout.forward(Product.SEEN, own_query, prompt_key, prompt_value, scaling)
        own, own_lse = layout.forward(Product.OWN, own_query, own_key, own_value, scaling)

        lse = torch.logaddexp(seen_lse, own_lse)
        responses = seen * (seen_lse - lse).exp()[..., None].to(query.dtype)
        responses += own * (own_lse - lse).exp()[..., None].to(query.dtype)
        whole = layout.join(prompt, responses, query)
        # On GPUs the next layer keeps the same tensor `whole`, so it costs no memory.
        ctx.save_for_backward(query, key, value, whole, prompt_lse, lse)
        ctx.layout, ctx.scaling = layout, scaling
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, whole, prompt_lse, lse = ctx.saved_tensors
        layout: Layout = ctx.layout
        prompt_query, prompt_key, prompt_value = (layout.prompts(each) for each in (query, key, value))
        own_query, own_key, own_value = (layout.responses(each) for each in (query, key, value))
        responses, grad_responses = layout.responses(whole), layout.responses(grad)

        of_prompts = layout.backward(
            Product.PROMPTS,
            layout.prompts(grad),
            (prompt_query, prompt_key, prompt_value),
            layout.prompts(whole),
            prompt_lse,
            ctx.scaling,
        )
        of_seen = layout.backward(
            Product.SEEN,
            grad_responses,
            (own_query, prompt_key, prompt_value),
            responses,
            lse,
            ctx.scaling,
        )
        of_own = layout.backward(
            Product.OWN, grad_responses, (own_query, own_key, own_value), responses, lse, ctx.scaling
        )
        return (
            layout.join(of_prompts[0], of_own[0] + of_seen[0], query),
            layout.join(of_prompts[1] + of_seen[1], of_own[1], key),
            layout.join(of_prompts[2] + of_seen[2], of_own[2], value),
            None,
            None,
        )
