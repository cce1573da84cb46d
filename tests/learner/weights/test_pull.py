"""Published weights: the parts are a safetensors file of exactly these weights, and lie where the weights lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from learner.weights import pull
from learner.weights.pull import HostCopy, file_parts

SHAPES = st.lists(st.integers(0, 5), max_size=3)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@given(st.dictionaries(st.text(min_size=1, max_size=20), st.tuples(SHAPES, DTYPES), max_size=6))
def test_put_together_they_are_the_file(described: dict[str, tuple[list[int], torch.dtype]]) -> None:
    weights = {name: torch.randn(shape).to(dtype) for name, (shape, dtype) in described.items()}
    found = load(b"".join(file_parts(weights, 1, HostCopy())))
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert found[name].dtype == weight.dtype
        assert torch.equal(found[name], weight)


def test_weights_are_not_copied() -> None:
    weight = torch.zeros(4, 5)
    _, part = file_parts({"weight": weight}, 1, HostCopy())
    assert np.shares_memory(part, weight.numpy())


def test_a_part_of_a_larger_tensor_is_its_own_bytes_only() -> None:
    """As ZeRO's weights are, and transposed ones."""
    whole = torch.arange(12.0).view(3, 4)
    weights = {"rows": whole[1:], "columns": whole[:, 1], "turned": whole.T}
    found = load(b"".join(file_parts(weights, 1, HostCopy())))
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


@given(st.lists(st.tuples(SHAPES, DTYPES), max_size=6))
def test_the_copy_on_the_host_has_the_bytes_of_the_tensors(
    described: list[tuple[list[int], torch.dtype]],
) -> None:
    """Without pinning, which needs a GPU. The memory is used again, also if the next weights are larger."""
    host = HostCopy(pin=False)
    for factor in (1, 2, 1):
        tensors = [torch.randn(shape * factor).to(dtype) for shape, dtype in described]
        host.restart()
        taken = [host.take(tensor) for tensor in tensors]
        assert [bytes(one.tolist()) for one in taken] == [
            bytes(tensor.view(-1).view(torch.uint8).tolist()) for tensor in tensors
        ]
        assert len({one.untyped_storage().data_ptr() for one in taken}) <= 1, "they are one allocation"


def test_a_tensor_larger_than_a_chunk_has_a_chunk_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "CHUNK_BYTES", 100)
    host = HostCopy(pin=False)
    memory = []
    for _ in range(2):
        host.restart()
        tensors = [torch.randn(size) for size in (10, 14, 60, 10)]
        taken = [host.take(tensor) for tensor in tensors]
        assert all(
            torch.equal(one.view(torch.float32), tensor) for one, tensor in zip(taken, tensors, strict=True)
        )
        memory.append([one.data_ptr() for one in taken])
    assert memory[0] == memory[1], "the memory is used again"
