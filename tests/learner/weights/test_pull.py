"""Published weights: the parts are a safetensors file of exactly these weights, and lie where the weights lie."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from cluster.configuration.memory import PINNED_WASTE
from cluster.configuration.model_shape import ModelShape
from learner.weights import pull
from learner.weights.pull import HostCopy, file_parts
from tests.shapes import CONFIGS

SHAPES = st.lists(st.integers(0, 5), max_size=3)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


# The format reserves one name.
NAMES = st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__")


@given(st.dictionaries(NAMES, st.tuples(SHAPES, DTYPES), max_size=6))
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


SCALE = 2**15
"""The sizes below are those of a real model divided by this number, and so are the chunks."""


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "SMALLEST_CHUNK", pull.SMALLEST_CHUNK // SCALE)
    monkeypatch.setattr(pull, "LARGEST_CHUNK", pull.LARGEST_CHUNK // SCALE)


def copied(host: HostCopy, tensors: Sequence[torch.Tensor]) -> list[int]:
    """Copy all tensors. Return the addresses of the copies."""
    host.restart()
    taken = [host.take(tensor) for tensor in tensors]
    assert all(torch.equal(one, tensor) for one, tensor in zip(taken, tensors, strict=True))
    return [one.data_ptr() for one in taken]


def drawn(sizes: Iterable[int]) -> list[torch.Tensor]:
    return [torch.randint(256, (size,), dtype=torch.uint8) for size in sizes]


@pytest.mark.usefixtures("small_chunks")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 100_000), max_size=40))
def test_the_copies_do_not_overlap_and_their_memory_is_used_again(sizes: list[int]) -> None:
    """Tensors from a fraction of a chunk to several chunks. The memory is a power of two in each piece."""
    host = HostCopy(pin=False)
    tensors = drawn(sizes)
    addresses, memory = copied(host, tensors), host.size
    places = sorted((address, size) for address, size in zip(addresses, sizes, strict=True) if size)
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(places))
    assert copied(host, tensors) == addresses
    assert host.size == memory
    assert all(len(chunk).bit_count() == 1 for chunk in host._chunks)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", ["Qwen2.5-1.5B-Instruct", "Qwen2.5-7B-Instruct", "Mistral-7B"])
def test_the_copy_of_a_large_model_wastes_little(name: str) -> None:
    """In the 7B model of Qwen a matrix of the feed-forward layers takes 135.8 MB: two do not fit into 256 MiB."""
    shape = ModelShape.from_config(CONFIGS[name])
    attention = [shape.hidden * width for width in (shape.query_width, shape.key_width) for _ in range(2)]
    layer = [*attention, *[shape.hidden * shape.intermediate] * 3, shape.hidden, shape.hidden]
    numbers = [shape.head, *layer * shape.layers, *([] if shape.tied else [shape.head])]
    sizes = [2 * number // SCALE for number in numbers]
    host = HostCopy(pin=False)
    copied(host, drawn(sizes))
    assert host.size < PINNED_WASTE * sum(sizes), "the estimate of check"
