"""The output layer fused with log-softmax, in blocks of the vocabulary. The logits of a whole batch never exist.

With a vocabulary of 150,000, the float32 logits of 8,192 response tokens would take 4.6 GiB, and log-softmax and its
gradient the same again. Here the logits of one block are computed, used and dropped, and computed again in backward.
The memory is that of one block; the cost is one more product with the output weights. The vocabulary is divided rather
than the tokens, so that each weight is read once per pass, and each row of the weights' gradient is written once and
needs no summation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

BLOCK_BYTES = 64 * 2**20
"""The size of one block's logits in float32, or up to twice this size if the whole vocabulary then fits into one block.
Two such tensors exist at a time."""
SMALLEST_BLOCK = 1024
"""The smallest number of words in a block, for any number of tokens. It is about the width of hidden states, so smaller
blocks save no memory."""


class TokenLogprobs(nn.Module):
    """Compute log-probabilities and entropies from hidden states and token ids. Shares the parameters of `head`.

    This is a module that holds the parameters itself, so that DeepSpeed's ZeRO 3 gathers them around its forward and
    backward, once for all blocks.
    """

    def __init__(
        self, head: nn.Linear, block_bytes: int = BLOCK_BYTES, smallest_block: int = SMALLEST_BLOCK
    ) -> None:
        super().__init__()
        self.weight = head.weight
        self.bias = head.bias
        self._block_bytes = block_bytes
        self._smallest_block = smallest_block

    def forward(self, hidden_ND: Tensor, token_ids_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Return log π(token) and the entropy of π, both [N], where π = softmax(head(hidden) / temperature).

        Both are at least float32 and differentiable.
        """
        bytes_of_a_word = 4 * max(1, len(hidden_ND))
        words = max(self._smallest_block, self._block_bytes // bytes_of_a_word)
        if bytes_of_a_word * len(self.weight) <= 2 * self._block_bytes:
            words = len(self.weight)  # a single block is kept for backward: worth a little more memory
        apply: Any = _TokenLogprobs.apply
        found: tuple[Tensor, Tensor] = apply(
            hidden_ND, self.weight, self.bias, token_ids_N, temperature, words
        )
        return found


@dataclass(slots=True)
class _Softmax:
    """An online softmax over blocks of logits (Milakov and Gimelshein, arXiv 1805.02867), and its entropy."""

    top_N: Tensor
    """The largest logit so far."""
    total_N: Tensor
    """Σ exp(z − top)."""
    moment_N: Tensor
    """Σ exp(z − top) (z − top)."""

    @classmethod
    def of_block(cls, logits_NW: Tensor, before: _Softmax | None) -> tuple[_Softmax, Tensor]:
        """Return the softmax over all blocks so far, and exp(z − top) of this block [N, W]. Overwrites the logits."""
        top_N = logits_NW.amax(dim=-1)
        if before is not None:
            top_N = torch.maximum(top_N, before.top_N)
        logits_NW -= top_N[:, None]
        weights_NW = logits_NW.exp()
        total_N = weights_NW.sum(dim=-1)
        moment_N = logits_NW.mul_(weights_NW).sum(dim=-1)  # in place: the logits are no longer needed
        if before is not None:
            lower_N = before.top_N - top_N
            scale_N = lower_N.exp()
            total_N += scale_N * before.total_N
            moment_N += scale_N * (before.moment_N + lower_N * before.total_N)
        return cls(top_N, total_N, moment_N), weights_NW

    @property
    def entropy_N(self) -> Tensor:
        """The entropy of the softmax over all blocks so far."""
        return self.total_N.log() - self.moment_N / self.total_N


class _TokenLogprobs(torch.autograd.Function):
    """The autograd function of `TokenLogprobs`. With p = softmax(z / T), y the token and H = −Σ p log p:

    T ∂ log p_y / ∂z_v = [v = y] − p_v              T ∂H / ∂z_v = −p_v (log p_v + H)
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        token_ids_N: Tensor,
        temperature: float,
        words: int,
    ) -> tuple[Tensor, Tensor]:
        softmax, weights_NW = None, None
        chosen_N = hidden_ND.new_empty(
            len(hidden_ND), dtype=torch.promote_types(hidden_ND.dtype, torch.float32)
        )
        for start in range(0, len(weight_VD), words):
            weights_NW = None  # free the last block before this one is allocated
            logits_NW = _logits(hidden_ND, weight_VD, bias_V, slice(start, start + words), temperature)
            here_K, column_K = _inside(token_ids_N, start, logits_NW.shape[1])
            chosen_N[here_K] = logits_NW[here_K, column_K]
            softmax, weights_NW = _Softmax.of_block(logits_NW, softmax)
            del logits_NW
        assert softmax is not None, "the vocabulary is empty"
        assert weights_NW is not None
        entropy_N = softmax.entropy_N
        ctx.save_for_backward(
            hidden_ND, weight_VD, bias_V, token_ids_N, softmax.top_N, softmax.total_N, entropy_N
        )
        ctx.temperature, ctx.words = temperature, words
        # Backward begins with the last block. With a single block nothing is computed twice.
        ctx.kept_NW = weights_NW.div_(softmax.total_N[:, None]) if any(ctx.needs_input_grad) else None
        ctx.set_materialize_grads(False)
        return chosen_N - softmax.top_N - softmax.total_N.log(), entropy_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs_N: Tensor | None, grad_entropy_N: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, token_ids_N, top_N, total_N, entropy_N = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        # A sum over blocks, so at least in float32.
        grad_hidden_ND = torch.zeros_like(hidden_ND, dtype=entropy_N.dtype) if wants_hidden else None
        grad_weight_VD = torch.empty_like(weight_VD) if wants_weight else None
        grad_bias_V = torch.empty_like(bias_V) if wants_bias else None

        for start in reversed(range(0, len(weight_VD), ctx.words)):
            block = slice(start, start + ctx.words)
            grad_logits_NW, ctx.kept_NW = ctx.kept_NW, None
            if grad_logits_NW is None:
                logits_NW = _logits(hidden_ND, weight_VD, bias_V, block, ctx.temperature)
                grad_logits_NW = logits_NW.sub_(top_N[:, None]).exp_().div_(total_N[:, None])
                del logits_NW
            _differentiate_(
                grad_logits_NW,
                _inside(token_ids_N, start, grad_logits_NW.shape[1]),
                None if grad_logprobs_N is None else grad_logprobs_N / ctx.temperature,
                None if grad_entropy_N is None else grad_entropy_N / ctx.temperature,
                entropy_N,
            )
            if grad_bias_V is not None:
                grad_bias_V[block] = grad_logits_NW.sum(dim=0)
            grad_logits_NW = grad_logits_NW.to(weight_VD.dtype)
            if grad_hidden_ND is not None:
                if grad_hidden_ND.dtype == weight_VD.dtype:
                    grad_hidden_ND.addmm_(grad_logits_NW, weight_VD[block])
                else:
                    grad_hidden_ND += grad_logits_NW @ weight_VD[block]
            if grad_weight_VD is not None:
                torch.mm(grad_logits_NW.T, hidden_ND, out=grad_weight_VD[block])
            del grad_logits_NW  # before the next block is made
        return (
            None if grad_hidden_ND is None else grad_hidden_ND.to(hidden_ND.dtype),
            grad_weight_VD,
            grad_bias_V,
            None,
            None,
            None,
        )


def _logits(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, block: slice, temperature: float
) -> Tensor:
    """Return the logits of one block of words, divided by the temperature, at least float32 [N, W]."""
    bias_W = None if bias_V is None else bias_V[block]
    logits_NW = functional.linear(hidden_ND, weight_VD[block], bias_W)
    logits_NW = logits_NW.to(torch.promote_types(logits_NW.dtype, torch.float32))
    return logits_NW if temperature == 1 else logits_NW.div_(temperature)


def _inside(token_ids_N: Tensor, start: int, words: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the tokens that lie in the block that begins at `start`, and their columns, both [K]."""
    column_N = token_ids_N - start
    here_K = ((column_N >= 0) & (column_N < words)).nonzero().squeeze(-1)
    return here_K, column_N[here_K]


def _differentiate_(
    probabilities_NW: Tensor,
    chosen: tuple[Tensor, Tensor],
    grad_logprobs_N: Tensor | None,
    grad_entropy_N: Tensor | None,
    entropy_N: Tensor,
) -> None:
    """Overwrite the probabilities with the gradient with respect to the logits (see `_TokenLogprobs`)."""
    of_entropy_NW = None
    if grad_entropy_N is not None:
        of_entropy_NW = torch.special.xlogy(probabilities_NW, probabilities_NW)  # p log p, 0 where p is 0
        of_entropy_NW.addcmul_(probabilities_NW, entropy_N[:, None]).mul_(-grad_entropy_N[:, None])
    if grad_logprobs_N is None:
        probabilities_NW.zero_()
    else:
        probabilities_NW.mul_(-grad_logprobs_N[:, None])
        here_K, column_K = chosen
        probabilities_NW[here_K, column_K] += grad_logprobs_N[here_K]
    if of_entropy_NW is not None:
        probabilities_NW += of_entropy_NW
