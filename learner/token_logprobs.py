"""The output layer and log-softmax in one, in chunks: the logits of a whole batch never exist.

With a vocabulary of 150,000, the float32 logits of 8,192 response tokens would take 4.6 GiB, and log-softmax and its
gradient as much again. Here a chunk's logits are made, used and dropped, and made again in backward. Memory is that of
a chunk, whatever the number of tokens. The cost is one more product with the output weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK_BYTES = 128 * 2**20
"""Of one chunk's logits in float32. Two tensors of this size exist at a time."""


class TokenLogprobs(nn.Module):
    """Hidden states and token ids in, log-probabilities and entropies out. Shares the parameters of `head`.

    It is a module and holds the parameters itself, so that DeepSpeed's ZeRO 3 gathers them around its forward and
    its backward, once for all chunks.
    """

    def __init__(self, head: nn.Linear, chunk_bytes: int = CHUNK_BYTES) -> None:
        super().__init__()
        self.weight = head.weight
        self.bias = head.bias
        self._chunk_bytes = chunk_bytes

    def forward(self, hidden_ND: Tensor, token_ids_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log π(token) and the entropy of π, both [N], where π = softmax(head(hidden) / temperature). At least float32;
        both are differentiable.
        """
        chunk = max(1, self._chunk_bytes // (4 * self.weight.shape[0]))
        return _TokenLogprobs.apply(hidden_ND, self.weight, self.bias, token_ids_N, temperature, chunk)


class _TokenLogprobs(torch.autograd.Function):
    """With p = softmax(z / T), y the token and H = −Σ p log p:

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
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        logprobs_N = hidden_ND.new_empty(len(hidden_ND), dtype=dtype)
        entropy_N = torch.empty_like(logprobs_N)
        probabilities_CV = None
        for start in range(0, len(hidden_ND), chunk):
            rows = slice(start, start + chunk)
            probabilities_CV = None  # the last chunk's, before this one needs its place
            logprobs_N[rows], entropy_N[rows], probabilities_CV = _score(
                hidden_ND[rows], weight_VD, bias_V, token_ids_N[rows], temperature
            )
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, token_ids_N, entropy_N)
        ctx.temperature, ctx.chunk = temperature, chunk
        # Backward begins with the last chunk. Where there is only one, nothing is computed twice.
        ctx.kept_CV = probabilities_CV if any(ctx.needs_input_grad) else None
        ctx.set_materialize_grads(False)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs_N: Tensor | None, grad_entropy_N: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, token_ids_N, entropy_N = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        grad_hidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        # A sum over chunks, so at least in float32.
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=entropy_N.dtype) if wants_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=entropy_N.dtype) if wants_bias else None

        for start in reversed(range(0, len(hidden_ND), ctx.chunk)):
            rows = slice(start, start + ctx.chunk)
            grad_logits_CV, ctx.kept_CV = ctx.kept_CV, None
            if grad_logits_CV is None:
                *_, grad_logits_CV = _score(
                    hidden_ND[rows], weight_VD, bias_V, token_ids_N[rows], ctx.temperature
                )
            _differentiate_(
                grad_logits_CV,
                token_ids_N[rows],
                None if grad_logprobs_N is None else grad_logprobs_N[rows] / ctx.temperature,
                None if grad_entropy_N is None else grad_entropy_N[rows] / ctx.temperature,
                entropy_N[rows],
            )
            if grad_bias_V is not None:
                grad_bias_V += grad_logits_CV.sum(dim=0)
            grad_logits_CV = grad_logits_CV.to(weight_VD.dtype)
            if grad_hidden_ND is not None:
                grad_hidden_ND[rows] = grad_logits_CV @ weight_VD
            if grad_weight_VD is not None:
                if grad_weight_VD.dtype == weight_VD.dtype:
                    grad_weight_VD.addmm_(grad_logits_CV.T, hidden_ND[rows])
                else:
                    grad_weight_VD += grad_logits_CV.T @ hidden_ND[rows]
            del grad_logits_CV  # before the next chunk is made
        return (
            grad_hidden_ND,
            None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype),
            None if grad_bias_V is None else grad_bias_V.to(weight_VD.dtype),
            None,
            None,
            None,
        )


def _score(
    hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, token_ids_C: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one chunk: log p of the tokens [C], entropies [C] and p itself [C, V]."""
    dtype = torch.promote_types(hidden_CD.dtype, torch.float32)
    logits_CV = functional.linear(hidden_CD, weight_VD, bias_V).to(dtype)
    if temperature != 1:
        logits_CV.div_(temperature)
    logits_CV -= logits_CV.amax(dim=-1, keepdim=True)
    chosen_C = logits_CV.gather(-1, token_ids_C[:, None]).squeeze(-1)
    probabilities_CV = logits_CV.exp()
    total_C = probabilities_CV.sum(dim=-1)
    probabilities_CV /= total_C[:, None]
    mean_logit_C = logits_CV.mul_(probabilities_CV).sum(dim=-1)  # in place: they are not needed any more
    log_total_C = total_C.log()
    return chosen_C - log_total_C, log_total_C - mean_logit_C, probabilities_CV


def _differentiate_(
    probabilities_CV: Tensor,
    token_ids_C: Tensor,
    grad_logprobs_C: Tensor | None,
    grad_entropy_C: Tensor | None,
    entropy_C: Tensor,
) -> None:
    """In place of the probabilities, the gradient by the logits (see `_TokenLogprobs`)."""
    of_entropy_CV = None
    if grad_entropy_C is not None:
        of_entropy_CV = torch.special.xlogy(probabilities_CV, probabilities_CV)  # p log p, 0 where p is 0
        of_entropy_CV.addcmul_(probabilities_CV, entropy_C[:, None]).mul_(-grad_entropy_C[:, None])
    if grad_logprobs_C is None:
        probabilities_CV.zero_()
    else:
        probabilities_CV.mul_(-grad_logprobs_C[:, None])
        probabilities_CV.scatter_add_(-1, token_ids_C[:, None], grad_logprobs_C[:, None])
    if of_entropy_CV is not None:
        probabilities_CV += of_entropy_CV
