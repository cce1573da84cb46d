"""The two layouts of a micro-batch's tokens in the products of `learner/model/split_attention.py`.

`Rows`      on CPU     one row per sequence or response, padded to the longest: PyTorch's kernel for CPUs
`Packed`    on GPUs    all tokens one after the other, without padding (learner/model/attention_kernels.py)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from learner.model.attention_kernels import Gradients, PackedKernel, Segments

_cpu_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Product(Enum):
    """The products of queries and keys."""

    PROMPTS = "prompts with themselves"
    SEEN = "responses with their prompt"
    OWN = "responses with themselves"


class Layout(Protocol):
    """The tokens of a micro-batch as the kernels of a device need them."""

    def prompts(self, whole_SHLX: Tensor) -> Tensor:
        """Return the prompts' columns."""

    def responses(self, whole_SHLX: Tensor) -> Tensor:
        """Return the responses' columns."""

    def join(self, prompts: Tensor, responses: Tensor, like_SHLX: Tensor) -> Tensor:
        """Return all columns [S, H, L, X] from both parts, with zeros for padding. The result has
        the shape of `like_SHLX`, and its order in memory if that is a model's."""

    def forward(
        self, product: Product, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """Return output and lse of the queries of one product."""

    def backward(
        self,
        product: Product,
        grad: Tensor,
        inputs: tuple[Tensor, Tensor, Tensor],
        output: Tensor,
        lse: Tensor,
        scaling: float,
    ) -> Gradients:
        """Return the gradients of the queries, keys and values of one product."""


_known: Any = WeakTensorKeyDictionary()
"""The layouts of the micro-batches that still exist, by their columns. All layers of a pass use the same."""


def layout_of(columns_S1GT: Tensor, width: int, device: torch.device, kernel: PackedKernel | None) -> Layout:
    """Return the layout for sequences of `width` columns, which is computed once for all layers."""
    known: dict[Any, Layout] = _known.setdefault(columns_S1GT, {})
    key = (width, device, kernel)
    if key not in known:
        if kernel is None:
            known[key] = Rows.of(columns_S1GT[:, 0], width)
        else:
            known[key] = Packed.of(columns_S1GT.numpy()[:, 0], width, device, kernel)
    return known[key]


@dataclass(frozen=True, slots=True)
class Rows:
    """One row per sequence for prompts, [S, H, P, X], and one per response, [S · G, H, T, X], as CPUs need them."""

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
    def of(cls, columns_SGT: Tensor, width: int) -> Rows:
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

    def prompts(self, whole_SHLX: Tensor) -> Tensor:
        """Return the first P columns. In sequences with a shorter prompt, the last of them belong to no prompt."""
        return whole_SHLX[:, :, : self.prompt]

    def responses(self, whole_SHLX: Tensor) -> Tensor:
        """Gather the responses' columns, [S · G, H, T, X], with zeros for absent tokens."""
        s, g, t = self.shape
        taken = whole_SHLX.new_zeros(s * g * t, whole_SHLX.shape[1], whole_SHLX.shape[3])
        taken[self.index_N] = whole_SHLX[self.sequence_N, :, self.column_N]
        return taken.view(s * g, t, *taken.shape[1:]).transpose(1, 2)

    def join(self, prompts: Tensor, responses: Tensor, like_SHLX: Tensor) -> Tensor:
        """Write the prompts' columns, and the responses' over those that belong to no prompt."""
        whole_SHLX = torch.zeros_like(like_SHLX)
        whole_SHLX[:, :, : self.prompt] = prompts
        whole_SHLX[self.sequence_N, :, self.column_N] = responses.transpose(1, 2).flatten(0, 1)[self.index_N]
        return whole_SHLX

    def forward(
        self, product: Product, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """Return output and lse in the rows of the queries."""
        if product is not Product.SEEN:
            found: tuple[Tensor, Tensor] = _cpu_forward(query, key, value, is_causal=True, scale=scaling)
            return found
        output, lse = _cpu_forward(
            self._by_sequence(query), key, value, attn_mask=self._mask(query.dtype), scale=scaling
        )
        return self._by_response(output), self._by_response(lse[..., None])[..., 0]

    def backward(
        self,
        product: Product,
        grad: Tensor,
        inputs: tuple[Tensor, Tensor, Tensor],
        output: Tensor,
        lse: Tensor,
        scaling: float,
    ) -> Gradients:
        """Return the gradients in the rows of the inputs."""
        query, key, value = inputs
        gradients: Gradients
        if product is not Product.SEEN:
            if product is Product.PROMPTS and self.beyond_SP is not None:
                grad = grad.masked_fill(self.beyond_SP[:, None, :, None], 0.0)
            gradients = _cpu_backward(
                grad.contiguous(), query, key, value, output, lse, 0.0, True, scale=scaling
            )
            return gradients
        grad_query, grad_key, grad_value = _cpu_backward(
            self._by_sequence(grad),
            self._by_sequence(query),
            key,
            value,
            self._by_sequence(output),
            self._by_sequence(lse[..., None])[..., 0],
            0.0,
            False,
            attn_mask=self._mask(query.dtype),
            scale=scaling,
        )
        return self._by_response(grad_query), grad_key, grad_value

    def _mask(self, dtype: torch.dtype) -> Tensor | None:
        """Return the mask to add to the scores of prompt columns, [S, 1, 1, P], or None if there is nothing to mask."""
        if self.beyond_SP is None:
            return None
        return torch.zeros(self.beyond_SP.shape, dtype=dtype).masked_fill_(self.beyond_SP, -torch.inf)[
            :, None, None
        ]

    def _by_sequence(self, taken: Tensor) -> Tensor:
        """Regroup from one row per response to one per sequence: [S · G, H, T, X] to [S, H, G · T, X]."""
        s, g, t = self.shape
        return taken.view(s, g, *taken.shape[1:]).transpose(1, 2).reshape(s, -1, g * t, taken.shape[3])

    def _by_response(self, rows: Tensor) -> Tensor:
        """Regroup from one row per sequence to one per response: the inverse of `_by_sequence`."""
        s, g, t = self.shape
        return rows.view(s, -1, g, t, rows.shape[3]).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class Packed:
    """All prompt tokens one after the other, [M, H, X], and all response tokens, [N, H, X], as GPUs need them."""

    kernel: PackedKernel
    prompt_M: Tensor
    """The index of each prompt token in the flattened [S · L]."""
    response_N: Tensor
    """The index of each response token in the flattened [S · L]."""
    seen: Tensor | None
    """The indices of those of the M prompt tokens that have responses; None if all have. They exclude prompts all of
    whose responses are single tokens, from which nothing is predicted."""
    segments: dict[Product, Segments]

    @classmethod
    def of(cls, columns_SGT: np.ndarray, width: int, device: torch.device, kernel: PackedKernel) -> Packed:
        """Derive the layout from the columns of the responses in sequences of `width` columns. This happens on the CPU,
        and only the results are moved to the device, so that the device is not waited for."""
        there_SGT = columns_SGT >= 0
        prompt_S = np.where(there_SGT, columns_SGT, width).min(axis=(1, 2))
        tokens_S = there_SGT.sum(axis=(1, 2))
        own_R = there_SGT.sum(axis=-1).ravel()
        own_R = own_R[own_R > 0]
        first_S = width * np.arange(len(columns_SGT))
        has_responses_S = tokens_S > 0
        lengths = {
            Product.PROMPTS: (prompt_S, prompt_S),
            Product.SEEN: (tokens_S[has_responses_S], prompt_S[has_responses_S]),
            Product.OWN: (own_R, own_R),
        }

        def there(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device)

        return cls(
            kernel=kernel,
            prompt_M=there(np.flatnonzero(np.arange(width) < prompt_S[:, None])),
            response_N=there((columns_SGT + first_S[:, None, None])[there_SGT]),
            seen=None if has_responses_S.all() else there(np.flatnonzero(has_responses_S.repeat(prompt_S))),
            segments={
                product: Segments.of(queries, keys, device, causal=product is not Product.SEEN)
                for product, (queries, keys) in lengths.items()
            },
        )

    def prompts(self, whole_SHLX: Tensor) -> Tensor:
        """Gather the prompts' tokens, [M, H, X]."""
        return _tokens(whole_SHLX).index_select(0, self.prompt_M)

    def responses(self, whole_SHLX: Tensor) -> Tensor:
        """Gather the responses' tokens, [N, H, X]."""
        return _tokens(whole_SHLX).index_select(0, self.response_N)

    def join(self, prompts: Tensor, responses: Tensor, like_SHLX: Tensor) -> Tensor:
        """Scatter the tokens into their columns. The heads of a column are together in memory, as a model has them."""
        sequences, heads, width, size = like_SHLX.shape
        whole_CHX = prompts.new_zeros(sequences * width, heads, size)
        whole_CHX.index_copy_(0, self.prompt_M, prompts).index_copy_(0, self.response_N, responses)
        return whole_CHX.view(sequences, width, heads, size).transpose(1, 2)

    def forward(
        self, product: Product, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """Return output and lse of the packed queries, [N, H, X] and [N, H]."""
        if product is Product.SEEN and self.seen is not None:
            key, value = key.index_select(0, self.seen), value.index_select(0, self.seen)
        return self.kernel.forward(query, key, value, self.segments[product], scaling)

    def backward(
        self,
        product: Product,
        grad: Tensor,
        inputs: tuple[Tensor, Tensor, Tensor],
        output: Tensor,
        lse: Tensor,
        scaling: float,
    ) -> Gradients:
        """Return the gradients of the packed inputs."""
        query, key, value = inputs
        segments = self.segments[product]
        if product is not Product.SEEN or self.seen is None:
            return self.kernel.backward(grad, query, key, value, output, lse, segments, scaling)
        seen_key, seen_value = key.index_select(0, self.seen), value.index_select(0, self.seen)
        grad_query, grad_key, grad_value = self.kernel.backward(
            grad, query, seen_key, seen_value, output, lse, segments, scaling
        )
        return (
            grad_query,
            torch.zeros_like(key).index_copy_(0, self.seen, grad_key),
            torch.zeros_like(value).index_copy_(0, self.seen, grad_value),
        )


def _tokens(whole_SHLX: Tensor) -> Tensor:
    """Return all columns of all sequences as [S · L, H, X]. This is a view of a model's own tensors."""
    return whole_SHLX.transpose(1, 2).flatten(0, 1)
