"""The output layer in blocks of the vocabulary: the numbers of the whole, in the memory of a block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from learner.model.token_logprobs import TokenLogprobs

VOCABULARY, WIDTH, TOKENS = 11, 5, 7
BLOCKS = [1, 4 * TOKENS * 3, 10**9]
"""In bytes of logits: of one word, of three, of all."""


def make(block_bytes: int, bias: bool = False, dtype: torch.dtype = torch.float64) -> TokenLogprobs:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TokenLogprobs(nn.Linear(WIDTH, VOCABULARY, bias, dtype=dtype), block_bytes, smallest_block=1)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    return hidden.requires_grad_(), torch.randint(VOCABULARY, (TOKENS,), generator=generator)


def reference(head: TokenLogprobs, hidden: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = nn.functional.linear(hidden, head.weight, head.bias)
    policy = torch.distributions.Categorical(
        logits=logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    )
    return policy.log_prob(ids), policy.entropy()


@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_computes_what_logits_would_give(block_bytes: int, temperature: float, dtype: torch.dtype) -> None:
    """In 16 bits too: the logits are rounded to the model's type before they become float32, as the model does."""
    head, (hidden, ids) = make(block_bytes, dtype=dtype), inputs(dtype)
    for ours, expected in zip(
        head(hidden, ids, temperature), reference(head, hidden, ids, temperature), strict=True
    ):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_finite_differences(block_bytes: int, bias: bool) -> None:
    """By hidden states, weights and bias, of log-probabilities and entropies."""
    head, (hidden, ids) = make(block_bytes, bias), inputs()
    names, parameters = zip(*head.named_parameters(), strict=True)

    def compute(hidden: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(head, dict(zip(names, values, strict=True)), (hidden, ids, 0.7))

    assert torch.autograd.gradcheck(compute, (hidden, *parameters))


@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize("output", [0, 1])
def test_one_output_alone_may_be_learned_from(block_bytes: int, output: int) -> None:
    head, (hidden, ids) = make(block_bytes), inputs()
    ours = torch.autograd.grad(head(hidden, ids, 0.7)[output].sin().sum(), [hidden, head.weight])
    expected = torch.autograd.grad(
        reference(head, hidden, ids, 0.7)[output].sin().sum(), [hidden, head.weight]
    )
    for gradient, one in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient, one, rtol=1e-12, atol=1e-12)


def test_gradients_in_16_bits_are_summed_in_32() -> None:
    """With a word per block, each adds a little to the same hidden states."""
    one_by_one, whole = make(1, dtype=torch.bfloat16), make(10**9, dtype=torch.bfloat16)
    gradients = []
    for head in (one_by_one, whole):
        hidden, ids = inputs(torch.bfloat16)
        head(hidden, ids, 1.0)[0].sum().backward()
        gradients.append((hidden.grad, head.weight.grad))
    for ours, expected in zip(*gradients, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2)


def test_frozen_weights_get_no_gradient() -> None:
    head, (hidden, ids) = make(1), inputs()
    head.weight.requires_grad_(False)
    head(hidden, ids, 1.0)[0].sum().backward()
    assert hidden.grad is not None
    assert head.weight.grad is None


def test_backward_may_be_done_twice() -> None:
    """The kept block is given up by the first."""
    head, (hidden, ids) = make(BLOCKS[1]), inputs()
    loss = head(hidden, ids, 1.0)[0].sum()
    (first,) = torch.autograd.grad(loss, [hidden], retain_graph=True)
    (second,) = torch.autograd.grad(loss, [hidden])
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_a_token_that_cannot_be_has_a_finite_entropy() -> None:
    """Its probability rounds to 0, whose logarithm does not exist."""
    head, (hidden, ids) = make(10**9), inputs()
    with torch.no_grad():
        head.weight[0] = -1e4 * hidden[0]
    logprobs, entropy = head(hidden, ids, 1.0)
    assert torch.isfinite(entropy).all()
    (gradient,) = torch.autograd.grad((logprobs + entropy)[ids != 0].sum(), [hidden])
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("vocabulary", [2_000, 20_000])
def test_memory_is_that_of_a_block_however_many_words(vocabulary: int) -> None:
    """The largest tensor made in forward and backward is no larger than the weights or one block of logits."""
    tokens, width, words = 64, 4, 100
    head = TokenLogprobs(nn.Linear(width, vocabulary, bias=False), 4 * tokens * words, smallest_block=1)
    hidden, ids = torch.randn(tokens, width, requires_grad=True), torch.randint(vocabulary, (tokens,))
    with LargestTensor() as largest:
        head(hidden, ids, 1.0)[0].sum().backward()
    assert tokens * words <= largest.elements <= max(tokens * words, vocabulary * width)


@pytest.mark.parametrize("tokens", [64, 1024])
def test_memory_is_that_of_a_block_however_many_tokens(tokens: int) -> None:
    vocabulary, width, words = 2000, 16, 32
    head = TokenLogprobs(nn.Linear(width, vocabulary, bias=False), 4 * 1024 * words, smallest_block=words)
    hidden, ids = torch.randn(tokens, width, requires_grad=True), torch.randint(vocabulary, (tokens,))
    with LargestTensor() as largest:
        head(hidden, ids, 1.0)[0].sum().backward()
    assert largest.elements == 1024 * words


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Elements of the largest tensor that any operation inside gave."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result
