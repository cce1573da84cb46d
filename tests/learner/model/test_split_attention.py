"""Attention in three products is what attention with a mask gives, in every layout, type and kernel."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from learner.model.attention_kernels import EFFICIENT, FLASH, PLAIN, packed_attention
from learner.model.attention_layouts import Packed
from learner.model.shared_prefix import response_columns
from learner.model.split_attention import split_attention
from tests.learner.model.packed_operators import operators_on_cpu

CPU = torch.device("cpu")
KERNELS = {"rows": None, "plain": PLAIN, "flash": FLASH, "efficient": EFFICIENT}
SEQUENCES = st.lists(
    st.tuples(st.integers(1, 4), st.lists(st.integers(0, 3), max_size=3)), min_size=1, max_size=3
)
"""The tokens of the prompt and of the responses of each sequence."""
WITH_RESPONSES = SEQUENCES.filter(lambda sequences: any(any(lengths) for _, lengths in sequences))
TOLERANCES: dict[torch.dtype, dict[str, float]] = {
    torch.float64: {"rtol": 1e-6, "atol": 1e-6},  # the logarithms of the sums are float32
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 5e-2, "atol": 5e-2},
}


@pytest.fixture(scope="module", autouse=True)
def operators() -> Iterator[None]:
    with operators_on_cpu():
        yield


def mask_of(prompts: Sequence[int], responses: Sequence[Sequence[int]], width: int) -> Tensor:
    """Return which query attends to which key, bool [S, 1, L, L]. Padding attends to itself only."""
    mask = torch.zeros(len(prompts), 1, width, width, dtype=torch.bool)
    for s, (prompt, lengths) in enumerate(zip(prompts, responses, strict=True)):
        ends = list(itertools.accumulate([prompt, *lengths]))
        for start, end in zip([0, *ends], [*ends, width], strict=True):
            mask[s, 0, start:end, start:end] = True
        mask[s, 0, prompt : ends[-1], :prompt] = True
        mask[s, 0, ends[-1] :, : ends[-1]] = False
    return mask.tril()


@given(SEQUENCES, st.integers(0, 2))
def test_who_sees_whom(sequences: list[tuple[int, list[int]]], padding: int) -> None:
    """The mask that the other tests compare with, query by query."""
    prompts, responses = [prompt for prompt, _ in sequences], [lengths for _, lengths in sequences]
    width = max(prompt + sum(lengths) for prompt, lengths in sequences) + padding
    mask = mask_of(prompts, responses, width)
    for s, (prompt, lengths) in enumerate(sequences):
        owner = ["prompt"] * prompt + [str(i) for i, length in enumerate(lengths) for _ in range(length)]
        owner += ["padding"] * (width - len(owner))
        for query, key in itertools.product(range(width), repeat=2):
            if owner[query] != "padding":
                allowed = key <= query and owner[key] in ("prompt", owner[query])
                assert mask[s, 0, query, key] == allowed, (query, key)


@settings(deadline=None, max_examples=30)
@given(
    sequences=WITH_RESPONSES,
    padding=st.integers(0, 2),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    head_dim=st.sampled_from([8, 12]),
)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("way", KERNELS)
def test_attention_and_its_gradient_are_what_the_mask_gives(
    way: str,
    dtype: torch.dtype,
    sequences: list[tuple[int, list[int]]],
    padding: int,
    heads: tuple[int, int],
    head_dim: int,
) -> None:
    prompts, responses = [prompt for prompt, _ in sequences], [lengths for _, lengths in sequences]
    width = max(prompt + sum(lengths) for prompt, lengths in sequences) + padding
    used_S1L1 = torch.zeros(len(sequences), 1, width, 1, dtype=torch.bool)
    for s, (prompt, lengths) in enumerate(sequences):
        used_S1L1[s, :, : prompt + sum(lengths)] = True
    query_heads, key_heads = heads
    generator = torch.Generator().manual_seed(0)

    def drawn(heads: int) -> Tensor:
        shape = (len(sequences), width, heads, head_dim)
        return torch.randn(shape, generator=generator, dtype=dtype).transpose(1, 2)

    tensors = [drawn(query_heads), drawn(key_heads), drawn(key_heads)]
    for each in tensors:
        each.requires_grad_()
    weights = drawn(query_heads) * used_S1L1

    kernel = KERNELS[way]
    with nullcontext() if kernel is None else packed_attention(kernel):
        ours = split_attention(*tensors, response_columns(prompts, responses), 0.3)
    mask = mask_of(prompts, responses, width)
    expected = scaled_dot_product_attention(*tensors, attn_mask=mask, scale=0.3, enable_gqa=True)
    close = partial(torch.testing.assert_close, **TOLERANCES[dtype])
    assert ours.isfinite().all()
    close(ours * used_S1L1, expected * used_S1L1)
    for gradient, one in zip(
        torch.autograd.grad((ours * weights).sum(), tensors),
        torch.autograd.grad((expected * weights).sum(), tensors),
        strict=True,
    ):
        close(gradient, one)


@given(WITH_RESPONSES, st.integers(0, 2))
def test_a_packed_layout_has_every_token_once_and_no_padding(
    sequences: list[tuple[int, list[int]]], padding: int
) -> None:
    prompts, responses = [prompt for prompt, _ in sequences], [lengths for _, lengths in sequences]
    width = max(prompt + sum(lengths) for prompt, lengths in sequences) + padding
    columns_SGT = response_columns(prompts, responses).numpy()[:, 0]
    layout = Packed.of(columns_SGT, width, CPU, PLAIN)
    tokens = [
        s * width + column
        for s, (prompt, lengths) in enumerate(sequences)
        # Where a sequence is a prompt only, it is not known where the prompt ends.
        for column in range(prompt + sum(lengths) if any(lengths) else width)
    ]
    assert sorted([*layout.prompt_M.tolist(), *layout.response_N.tolist()]) == tokens


def test_the_output_needs_no_copy_for_the_next_layer() -> None:
    """The heads of a column are together, as the models' inputs have them."""
    tensors = [torch.randn(2, 9, 4, 8).transpose(1, 2).requires_grad_() for _ in range(3)]
    for kernel in KERNELS.values():
        with nullcontext() if kernel is None else packed_attention(kernel):
            output = split_attention(*tensors, response_columns([3, 2], [[2, 4], [3, 1]]), 0.3)
        assert output.transpose(1, 2).is_contiguous()
        assert all(
            gradient.transpose(1, 2).is_contiguous()
            for gradient in torch.autograd.grad(output.sum(), tensors)
        )
