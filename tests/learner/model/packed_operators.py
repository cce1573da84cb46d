"""PyTorch's attention operators for packed inputs on CPU, where PyTorch has none.

They are registered with PyTorch, so calls pass its dispatcher and must fit the operators' schemas. They check what the
operators for GPUs require of their inputs, and return tensors in the same layouts. Their arithmetic is that of
`PlainKernel`. Unlike the originals they compute in any type. What they cannot show: that the originals compute the
same, and how fast.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from learner.model.attention_kernels import PLAIN, Segments


@contextmanager
def operators_on_cpu() -> Iterator[None]:
    """Register the operators within this block."""
    library = torch.library.Library("aten", "IMPL", "CPU")
    for operator in (flash_forward, flash_backward, efficient_forward, efficient_backward):
        kind, _, direction = operator.__name__.partition("_")
        library.impl(f"_{kind}_attention_{direction}", operator)
    try:
        yield
    finally:
        library._destroy()


def flash_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    longest_query: int,
    longest_key: int,
    dropout: float,
    causal: bool,
    debug: bool,
    *,
    scale: float,
    **others: Any,
) -> tuple[Tensor, ...]:
    assert not any(others.values())
    assert dropout == 0
    assert not debug
    segments = checked(query, key, value, query_starts, key_starts, longest_query, longest_key, causal)
    assert query.shape[-1] % 8 == 0
    assert query.shape[-1] <= 256
    output, lse_NH = PLAIN.forward(query, key, value, segments, scale)
    state = torch.zeros(2, dtype=torch.uint64)
    return output, lse_NH.T.contiguous(), state, torch.zeros(()), torch.zeros(0)


def flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    longest_query: int,
    longest_key: int,
    dropout: float,
    causal: bool,
    random_state: Tensor,
    unused: Tensor,
    *,
    scale: float,
    **others: Any,
) -> tuple[Tensor, ...]:
    assert not any(others.values())
    assert dropout == 0
    segments = checked(query, key, value, query_starts, key_starts, longest_query, longest_key, causal)
    assert lse.shape == (query.shape[1], len(query))
    assert lse.is_contiguous()
    assert grad.shape == output.shape == query.shape
    return PLAIN.backward(grad, query, key, value, output, lse.T, segments, scale)


def efficient_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    query_starts: Tensor,
    key_starts: Tensor,
    longest_query: int,
    longest_key: int,
    dropout: float,
    mask_type: int,
    compute_lse: bool,
    *,
    scale: float,
    **others: Any,
) -> tuple[Any, ...]:
    assert not any(others.values())
    assert bias is None
    assert dropout == 0
    assert compute_lse
    assert mask_type in (0, 1)
    assert len(query) == len(key) == len(value) == 1
    assert query.shape[2] == key.shape[2] == value.shape[2], "it supports no grouped queries"
    segments = checked(
        query[0], key[0], value[0], query_starts, key_starts, longest_query, longest_key, mask_type == 1
    )
    output, lse_NH = PLAIN.forward(query[0], key[0], value[0], segments, scale)
    lse_RHQ = lse_NH.new_full((len(query_starts) - 1, query.shape[2], padded(longest_query)), math.inf)
    for lse_HQ, start, end in zip(
        lse_RHQ, query_starts[:-1].tolist(), query_starts[1:].tolist(), strict=True
    ):
        lse_HQ[:, : end - start] = lse_NH[start:end].T
    state = torch.zeros((), dtype=torch.int64)
    return output[None], lse_RHQ, state, state, longest_query, longest_key


def efficient_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    output: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    longest_query: int,
    longest_key: int,
    lse_RHQ: Tensor,
    dropout: float,
    seed: Tensor,
    offset: Tensor,
    mask_type: int,
    bias_requires_grad: bool,
    *,
    scale: float,
    **others: Any,
) -> tuple[Tensor | None, ...]:
    assert not any(others.values())
    assert bias is None
    assert not bias_requires_grad
    assert dropout == 0
    assert mask_type in (0, 1)
    assert len(query) == 1
    assert query.shape[2] == key.shape[2] == value.shape[2]
    assert lse_RHQ.shape == (len(query_starts) - 1, query.shape[2], padded(longest_query))
    segments = checked(
        query[0], key[0], value[0], query_starts, key_starts, longest_query, longest_key, mask_type == 1
    )
    lse_NH = torch.cat(
        [
            lse_HQ[:, : end - start].T
            for lse_HQ, start, end in zip(
                lse_RHQ, query_starts[:-1].tolist(), query_starts[1:].tolist(), strict=True
            )
        ]
    )
    found = PLAIN.backward(grad[0], query[0], key[0], value[0], output[0], lse_NH, segments, scale)
    return (*(gradient[None] for gradient in found), torch.zeros(0))


def padded(longest: int) -> int:
    return math.ceil(longest / 32) * 32


def checked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    longest_query: int,
    longest_key: int,
    causal: bool,
) -> Segments:
    """Return the segments, if the operators for GPUs accept the inputs."""
    for rows, starts, longest in ((query, query_starts, longest_query), (key, key_starts, longest_key)):
        assert starts.dtype == torch.int32
        assert starts.is_contiguous()
        assert starts.device == query.device
        assert starts[0] == 0
        assert starts[-1] == len(rows)
        assert starts.diff().min() > 0, "an empty segment"
        assert starts.diff().max() == longest
    assert query_starts.shape == key_starts.shape
    assert key.shape == value.shape
    assert query.dtype == key.dtype == value.dtype
    assert all(rows.stride(-1) == 1 for rows in (query, key, value))
    assert query.shape[1] % key.shape[1] == 0
    assert not causal or torch.equal(query_starts, key_starts)
    return Segments(query_starts, key_starts, longest_query, longest_key, causal)
