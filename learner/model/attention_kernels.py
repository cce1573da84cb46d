"""Attention kernels of PyTorch for GPUs whose inputs are packed, and which return the logarithms of their sums.

    queries   a a a │ b b │ c c c c      rows of all sequences, one after the other, without padding
    keys      x x │ y y y │ z            segment r of the queries attends to segment r of the keys

`learner/model/split_attention.py` composes the attention of shared prefixes from three such products. It needs the
logarithm of each row's sum of exponentials (`lse`), and a backward pass that accepts another output and lse than the
forward pass returned. PyTorch's public functions do not offer this: `scaled_dot_product_attention` returns no lse,
`varlen_attn` returns it but differentiates with its own, and FlexAttention must be compiled for each pattern. The
operators behind them do. Their memory grows with the number of rows, not with its square.

| kernel | operators | types | grouped-query attention |
|---|---|---|---|
| `FlashKernel` | FlashAttention 2, compute capability 8.0 and newer | bfloat16, float16 | as it is |
| `EfficientKernel` | CUTLASS, memory-efficient attention | float32 too | repeats keys and values during the product |
| `PlainKernel` | matrix products, softmax | every type and device | as it is |
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

_FLASH_TYPES = (torch.bfloat16, torch.float16)
_FLASH_MAX_HEAD_DIM = 256
_FLASH_MIN_CAPABILITY = (8, 0)
_LSE_ALIGNMENT = 32
"""The efficient kernel keeps the lse of each segment in rows of a multiple of this length."""
_NO_MASK, _CAUSAL = 0, 1
"""The `custom_mask_type` of the efficient kernel."""


@dataclass(frozen=True, slots=True)
class Segments:
    """The segments of a product. None of them is empty."""

    query_starts: Tensor
    """The first query row of each segment, and the number of rows, int32 [R + 1]."""
    key_starts: Tensor
    """The same for the rows of keys and values."""
    longest_query: int
    longest_key: int
    causal: bool
    """True if a query attends to the keys up to its own position only. The segments of keys are then as long."""

    @classmethod
    def of(
        cls, query_lengths: np.ndarray, key_lengths: np.ndarray, device: torch.device, *, causal: bool
    ) -> Segments:
        """Build the segments on `device` from their lengths, int [R]."""
        return cls(
            _starts(query_lengths, device),
            _starts(key_lengths, device),
            int(query_lengths.max()),
            int(key_lengths.max()),
            causal,
        )


def _starts(lengths_R: np.ndarray, device: torch.device) -> Tensor:
    starts = np.concatenate([[0], lengths_R.cumsum()]).astype(np.int32)
    return torch.from_numpy(starts).to(device)


Gradients = tuple[Tensor, Tensor, Tensor]
"""The gradients of queries, keys and values."""


class PackedKernel(Protocol):
    """A product of packed queries [N, H, E] with packed keys and values [M, J, E]. H is a multiple of J."""

    def forward(
        self, query_NHE: Tensor, key_MJE: Tensor, value_MJE: Tensor, segments: Segments, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """Return the output [N, H, E] and the lse, at least float32 [N, H]."""

    def backward(
        self,
        grad_NHE: Tensor,
        query_NHE: Tensor,
        key_MJE: Tensor,
        value_MJE: Tensor,
        output_NHE: Tensor,
        lse_NH: Tensor,
        segments: Segments,
        scaling: float,
    ) -> Gradients:
        """Return the gradients. Output and lse may be those over more keys than this product has: then the gradients
        are the part of these keys."""


class FlashKernel:
    """FlashAttention 2 for 16-bit types."""

    def forward(
        self, query_NHE: Tensor, key_MJE: Tensor, value_MJE: Tensor, segments: Segments, scaling: float
    ) -> tuple[Tensor, Tensor]:
        output_NHE, lse_HN, *_ = torch.ops.aten._flash_attention_forward(
            query_NHE,
            key_MJE,
            value_MJE,
            segments.query_starts,
            segments.key_starts,
            segments.longest_query,
            segments.longest_key,
            0.0,
            segments.causal,
            False,
            scale=scaling,
        )
        return output_NHE, lse_HN.T

    def backward(
        self,
        grad_NHE: Tensor,
        query_NHE: Tensor,
        key_MJE: Tensor,
        value_MJE: Tensor,
        output_NHE: Tensor,
        lse_NH: Tensor,
        segments: Segments,
        scaling: float,
    ) -> Gradients:
        random_state = torch.zeros(2, dtype=torch.uint64, device=query_NHE.device)  # there is no dropout
        unused = torch.empty(0, device=query_NHE.device)
        gradients: Gradients = torch.ops.aten._flash_attention_backward(
            grad_NHE,
            query_NHE,
            key_MJE,
            value_MJE,
            output_NHE,
            lse_NH.T.contiguous(),
            segments.query_starts,
            segments.key_starts,
            segments.longest_query,
            segments.longest_key,
            0.0,
            segments.causal,
            random_state,
            unused,
            scale=scaling,
        )
        return gradients


class EfficientKernel:
    """Memory-efficient attention, for float32 and for what FlashAttention does not support."""

    def forward(
        self, query_NHE: Tensor, key_MJE: Tensor, value_MJE: Tensor, segments: Segments, scaling: float
    ) -> tuple[Tensor, Tensor]:
        groups = query_NHE.shape[1] // key_MJE.shape[1]
        output_1NHE, lse_RHQ, *_ = torch.ops.aten._efficient_attention_forward(
            query_NHE[None],
            _repeated(key_MJE, groups)[None],
            _repeated(value_MJE, groups)[None],
            None,
            segments.query_starts,
            segments.key_starts,
            segments.longest_query,
            segments.longest_key,
            0.0,
            _CAUSAL if segments.causal else _NO_MASK,
            True,
            scale=scaling,
        )
        return output_1NHE[0], lse_RHQ.transpose(1, 2)[_segment_and_place(segments, len(query_NHE))]

    def backward(
        self,
        grad_NHE: Tensor,
        query_NHE: Tensor,
        key_MJE: Tensor,
        value_MJE: Tensor,
        output_NHE: Tensor,
        lse_NH: Tensor,
        segments: Segments,
        scaling: float,
    ) -> Gradients:
        groups = query_NHE.shape[1] // key_MJE.shape[1]
        width = -(-segments.longest_query // _LSE_ALIGNMENT) * _LSE_ALIGNMENT
        lse_RHQ = lse_NH.new_full((len(segments.query_starts) - 1, lse_NH.shape[1], width), torch.inf)
        lse_RHQ.transpose(1, 2)[_segment_and_place(segments, len(query_NHE))] = lse_NH
        unused = torch.zeros((), dtype=torch.int64)  # the state of a generator: there is no dropout
        grad_query, grad_key, grad_value, _ = torch.ops.aten._efficient_attention_backward(
            grad_NHE[None],
            query_NHE[None],
            _repeated(key_MJE, groups)[None],
            _repeated(value_MJE, groups)[None],
            None,
            output_NHE[None],
            segments.query_starts,
            segments.key_starts,
            segments.longest_query,
            segments.longest_key,
            lse_RHQ,
            0.0,
            unused,
            unused,
            _CAUSAL if segments.causal else _NO_MASK,
            False,
            scale=scaling,
        )
        return grad_query[0], _added_up(grad_key[0], groups), _added_up(grad_value[0], groups)


class PlainKernel:
    """The same products in elementary operations, one segment after the other, which the other kernels are compared
    with. Its memory grows with the square of a segment."""

    def forward(
        self, query_NHE: Tensor, key_MJE: Tensor, value_MJE: Tensor, segments: Segments, scaling: float
    ) -> tuple[Tensor, Tensor]:
        outputs, lses = [], []
        for queries, keys in _slices(segments):
            value_HKE = _by_head(value_MJE[keys], query_NHE.shape[1])
            scores_HQK = _scores(query_NHE[queries], key_MJE[keys], segments.causal, scaling)
            lse_HQ = scores_HQK.logsumexp(dim=-1)
            outputs.append(((scores_HQK - lse_HQ[..., None]).exp() @ value_HKE).transpose(0, 1))
            lses.append(lse_HQ.T)
        return torch.cat(outputs).to(query_NHE.dtype), torch.cat(lses)

    def backward(
        self,
        grad_NHE: Tensor,
        query_NHE: Tensor,
        key_MJE: Tensor,
        value_MJE: Tensor,
        output_NHE: Tensor,
        lse_NH: Tensor,
        segments: Segments,
        scaling: float,
    ) -> Gradients:
        heads, key_heads = query_NHE.shape[1], key_MJE.shape[1]
        parts: list[tuple[Tensor, ...]] = []
        for queries, keys in _slices(segments):
            scores_HQK = _scores(query_NHE[queries], key_MJE[keys], segments.causal, scaling)
            weights_HQK = (scores_HQK - lse_NH[queries].T[..., None]).exp()
            grad_HQE, output_HQE = (_by_head(rows[queries], heads) for rows in (grad_NHE, output_NHE))
            query_HQE, key_HKE = _by_head(query_NHE[queries], heads), _by_head(key_MJE[keys], heads)
            along_HQK = grad_HQE @ _by_head(value_MJE[keys], heads).mT
            grad_scores_HQK = weights_HQK * (along_HQK - (grad_HQE * output_HQE).sum(-1, keepdim=True))
            grad_scores_HQK *= scaling
            parts.append(
                (
                    (grad_scores_HQK @ key_HKE).transpose(0, 1),
                    _added_up((grad_scores_HQK.mT @ query_HQE).transpose(0, 1), heads // key_heads),
                    _added_up((weights_HQK.mT @ grad_HQE).transpose(0, 1), heads // key_heads),
                )
            )
        grad_query, grad_key, grad_value = (torch.cat(each) for each in zip(*parts, strict=True))
        dtype = query_NHE.dtype
        return grad_query.to(dtype), grad_key.to(dtype), grad_value.to(dtype)


def _repeated(rows_MJE: Tensor, groups: int) -> Tensor:
    """Repeat each head of keys or values for the heads of queries that use it, [M, J · groups, E]."""
    return rows_MJE if groups == 1 else rows_MJE.repeat_interleave(groups, dim=1)


def _added_up(rows_MHE: Tensor, groups: int) -> Tensor:
    """Add up the gradients of repeated heads: the transpose of `_repeated`, [M, H / groups, E]."""
    rows, heads, size = rows_MHE.shape
    return rows_MHE if groups == 1 else rows_MHE.view(rows, heads // groups, groups, size).sum(dim=2)


def _segment_and_place(segments: Segments, rows: int) -> tuple[Tensor, Tensor]:
    """Return the segment of each query row, and its place in the segment, both [N]."""
    row_N = torch.arange(rows, dtype=torch.int32, device=segments.query_starts.device)
    segment_N = torch.searchsorted(segments.query_starts, row_N, right=True) - 1
    return segment_N, row_N - segments.query_starts[segment_N]


def _slices(segments: Segments) -> Iterator[tuple[slice, slice]]:
    """Yield the rows of the queries and of the keys of each segment."""
    starts = (pairwise(each.tolist()) for each in (segments.query_starts, segments.key_starts))
    for queries, keys in zip(*starts, strict=True):
        yield slice(*queries), slice(*keys)


def _by_head(rows_MJE: Tensor, heads: int) -> Tensor:
    """Return rows by head and at least in float32, [H, M, E]."""
    wide = _repeated(rows_MJE, heads // rows_MJE.shape[1]).transpose(0, 1)
    return wide.to(torch.promote_types(wide.dtype, torch.float32))


def _scores(query_QHE: Tensor, key_KJE: Tensor, causal: bool, scaling: float) -> Tensor:
    heads = query_QHE.shape[1]
    scores_HQK = _by_head(query_QHE, heads) @ _by_head(key_KJE, heads).mT * scaling
    if causal:
        ones_QK = torch.ones(scores_HQK.shape[1:], dtype=torch.bool, device=scores_HQK.device)
        scores_HQK = scores_HQK.masked_fill(ones_QK.triu(1), -torch.inf)
    return scores_HQK


# --- The choice of a kernel.

FLASH, EFFICIENT, PLAIN = FlashKernel(), EfficientKernel(), PlainKernel()

_chosen: list[PackedKernel] = []


@contextmanager
def packed_attention(kernel: PackedKernel) -> Iterator[None]:
    """Use `kernel` within this block on every device, CPUs included, to compare kernels."""
    _chosen.append(kernel)
    try:
        yield
    finally:
        _chosen.pop()


def packed_kernel(query: Tensor) -> PackedKernel | None:
    """Return the kernel for these queries [..., E]. None on CPU, where attention is not packed (`split_attention`).

    Raises:
        ValueError: if there is no kernel for the device.
    """
    if _chosen:
        return _chosen[-1]
    if query.device.type == "cpu":
        return None
    if query.device.type != "cuda":
        raise ValueError(
            f"prefix sharing has no attention kernel for {query.device.type} devices, only for cpu and cuda: "
            "set learner.prefix_sharing to off"
        )
    flash: Any = query.dtype in _FLASH_TYPES and query.shape[-1] <= _FLASH_MAX_HEAD_DIM
    if flash and torch.cuda.get_device_capability(query.device) >= _FLASH_MIN_CAPABILITY:
        return FLASH
    return EFFICIENT
