"""The kernels for packed inputs: which one is used, and what they keep in memory. They run on GPUs only.

Here their operators have a substitute (tests/learner/model/packed_operators.py), or compute shapes on meta tensors,
which have no values. So these tests show neither that the operators compute the right numbers nor how fast they are.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.attention_cost import Sizes, costs
from learner.model.attention_kernels import (
    EFFICIENT,
    FLASH,
    PLAIN,
    PackedKernel,
    Segments,
    packed_attention,
    packed_kernel,
)
from learner.model.attention_layouts import Packed
from learner.model.shared_prefix import response_columns
from learner.model.split_attention import split_attention
from tests.learner.model.packed_operators import operators_on_cpu


def on(device: str, dtype: torch.dtype, head_dim: int = 128) -> Any:
    """Return what `packed_kernel` asks a tensor for."""
    return SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(1, 2, 3, head_dim))


@pytest.mark.parametrize(
    ("query", "capability", "kernel"),
    [
        (on("cpu", torch.float32), (0, 0), None),
        (on("cuda", torch.bfloat16), (9, 0), FLASH),
        (on("cuda", torch.float16), (8, 0), FLASH),
        (on("cuda", torch.float16), (7, 5), EFFICIENT),
        (on("cuda", torch.bfloat16, head_dim=512), (9, 0), EFFICIENT),
        (on("cuda", torch.float32), (9, 0), EFFICIENT),
    ],
)
def test_a_kernel_fits_device_and_type(
    monkeypatch: pytest.MonkeyPatch, query: Any, capability: tuple[int, int], kernel: PackedKernel | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert packed_kernel(query) is kernel


def test_a_device_without_a_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no attention kernel for mps .* learner.prefix_sharing to off"):
        packed_kernel(on("mps", torch.float32))


def test_a_kernel_can_be_chosen_for_a_block() -> None:
    with packed_attention(PLAIN):
        with packed_attention(FLASH):
            assert packed_kernel(on("mps", torch.float32)) is FLASH
        assert packed_kernel(on("cpu", torch.float32)) is PLAIN
    assert packed_kernel(on("cpu", torch.float32)) is None


def drawn(rows: int, heads: int, device: str = "cpu") -> Tensor:
    return torch.randn(rows, heads, 16).to(device)


def test_the_substitutes_have_the_shapes_that_pytorch_gives_for_the_originals() -> None:
    """PyTorch 2.13 computes no shapes of the efficient kernel's gradients."""
    lengths = np.array([3, 40, 7])
    rows = int(lengths.sum())
    found: dict[str, list[list[tuple[Any, ...]]]] = {"cpu": [], "meta": []}
    for device, shapes in found.items():
        segments = Segments.of(lengths, lengths, torch.device(device), causal=True)
        inputs = [drawn(rows, heads, device) for heads in (4, 2, 2)]
        with operators_on_cpu():
            output, lse = FLASH.forward(*inputs, segments, 0.3)
            gradients = FLASH.backward(output, *inputs, output, lse, segments, 0.3)
            efficient = EFFICIENT.forward(*inputs, segments, 0.3) if device == "cpu" else None
        shapes.append([(each.shape, each.dtype) for each in (output, lse, *gradients)])
        if efficient is not None:
            assert [(each.shape, each.dtype) for each in efficient] == shapes[-1][:2]
        with operators_on_cpu():
            raw = torch.ops.aten._efficient_attention_forward(
                *(drawn(rows, 4, device)[None] for _ in range(3)),
                None,
                segments.query_starts,
                segments.key_starts,
                segments.longest_query,
                segments.longest_key,
                0.0,
                1,
                True,
                scale=0.3,
            )
        shapes.append([(each.shape, each.dtype) for each in raw[:2]])
    assert found["cpu"] == found["meta"]


def kept_bytes(prompt: int, responses: int, tokens: int) -> tuple[int, int]:
    """Count the bytes that the attention of one layer keeps for its backward pass, and the largest tensor that either
    pass makes, with the heads of Qwen2.5-1.5B in bfloat16."""
    width = prompt + responses * tokens
    sizes = {}

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(
            self, function: Any, types: Any, arguments: Any = (), options: Any = None
        ) -> Any:
            made = function(*arguments, **(options or {}))
            for each in torch.utils._pytree.tree_leaves(made):
                if isinstance(each, Tensor) and each.device.type == "meta":
                    self.largest = max(self.largest, each.numel() * each.element_size())
            return made

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    inputs = [
        torch.empty(1, width, heads, 128, dtype=torch.bfloat16, device="meta")
        .transpose(1, 2)
        .requires_grad_()
        for heads in (12, 2, 2)
    ]
    columns = response_columns([prompt], [[tokens] * responses])
    with packed_attention(FLASH):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            split_attention(*inputs, columns, 0.1)
        with Largest() as mode:
            output = split_attention(*inputs, columns, 0.1)
            torch.autograd.grad(output.sum(), inputs)
    return sum(sizes.values()), mode.largest


@pytest.mark.parametrize("tokens", [1024, 4096, 32768])
def test_memory_grows_with_the_tokens_and_not_with_their_square(tokens: int) -> None:
    """It is what benchmarks/attention_cost.py predicts. No tensor of a pass is larger than the queries."""
    kept, largest = kept_bytes(2048, 16, tokens)
    predicted = costs(Sizes(), 2048, 16, tokens)["split"]
    assert kept == pytest.approx(predicted.kept_bytes, rel=0.001)
    assert largest <= 12 * 128 * 2 * predicted.columns


def test_a_layout_is_on_the_device_of_its_tensors() -> None:
    columns_SGT = response_columns([3, 2], [[2, 4], [0]]).numpy()[:, 0]
    layout = Packed.of(columns_SGT, 9, torch.device("meta"), FLASH)
    segments = layout.segments.values()
    parts = [layout.prompt_M, layout.response_N, layout.seen]
    parts += [starts for each in segments for starts in (each.query_starts, each.key_starts)]
    assert {part.device.type for part in parts if part is not None} == {"meta"}
