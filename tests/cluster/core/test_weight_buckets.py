"""Buckets: what was sent is what is received, bit by bit, in few broadcasts of a bounded size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.types import WeightLayout
from cluster.core.weight_buckets import (
    ALIGNMENT,
    BucketMemory,
    plan_buckets,
    receive_in_buckets,
    send_in_buckets,
)

CPU = torch.device("cpu")
DTYPES = ["float32", "bfloat16", "float16", "float64", "int8", "float8_e4m3fn", "bool"]
LAYOUTS = st.lists(
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 7), max_size=3)), max_size=12
).map(
    lambda described: [
        WeightLayout(f"weight {index}", dtype, tuple(shape)) for index, (dtype, shape) in enumerate(described)
    ]
)
CAPACITIES = st.integers(1, 3000)


def weights(layout: list[WeightLayout], seed: int = 0) -> dict[str, torch.Tensor]:
    """Return tensors of any bits, also those of NaN."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, dtype, shape in layout:
        kind = getattr(torch, dtype)
        count = math.prod(shape) * kind.itemsize
        random_bytes = torch.randint(0, 2 if dtype == "bool" else 256, (count,), generator=generator)
        found[name] = random_bytes.to(torch.uint8).view(kind).view(shape)
    return found


def sent(layout: list[WeightLayout], tensors: dict[str, torch.Tensor], capacity: int) -> list[torch.Tensor]:
    """Return a copy of each broadcast."""
    broadcasts: list[torch.Tensor] = []
    send_in_buckets(
        lambda tensor: broadcasts.append(tensor.clone()),
        layout,
        iter(tensors.items()),
        BucketMemory(CPU),
        capacity,
    )
    return broadcasts


def received(
    layout: list[WeightLayout],
    broadcasts: list[torch.Tensor],
    capacity: int,
    memory: BucketMemory | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    arriving = iter(broadcasts)

    def broadcast(tensor: torch.Tensor) -> None:
        tensor.copy_(next(arriving))

    return receive_in_buckets(broadcast, layout, memory or BucketMemory(CPU), capacity)


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().view(-1).view(torch.uint8).tolist()


@given(LAYOUTS, CAPACITIES)
def test_all_tensors_arrive_bit_by_bit_and_in_order(layout: list[WeightLayout], capacity: int) -> None:
    tensors = weights(layout)
    found = list(received(layout, sent(layout, tensors, capacity), capacity))
    assert [name for name, _ in found] == list(tensors)
    for name, tensor in found:
        assert (tensor.dtype, tensor.shape) == (tensors[name].dtype, tensors[name].shape)
        assert bits(tensor) == bits(tensors[name])


@given(LAYOUTS, CAPACITIES)
def test_tensors_lie_apart_in_their_buckets_and_only_a_large_one_exceeds_the_capacity(
    layout: list[WeightLayout], capacity: int
) -> None:
    buckets = plan_buckets(layout, capacity)
    assert [slot.layout for bucket in buckets for slot in bucket.slots] == layout
    for bucket in buckets:
        assert bucket.size <= capacity or bucket.is_one_tensor
        end = 0
        for slot in bucket.slots:
            assert slot.offset % ALIGNMENT == 0
            assert slot.offset >= end
            end = slot.offset + slot.size
        assert end == bucket.size


@given(LAYOUTS, CAPACITIES)
def test_two_neighboring_buckets_never_fit_into_one(layout: list[WeightLayout], capacity: int) -> None:
    """So the number of broadcasts is at most two per capacity of bytes."""
    buckets = plan_buckets(layout, capacity)
    for bucket, after in pairwise(buckets):
        padded = -(-bucket.size // ALIGNMENT) * ALIGNMENT
        assert padded + after.slots[0].size > capacity


def test_three_hundred_small_tensors_are_a_few_broadcasts() -> None:
    layout = [WeightLayout(f"weight {index}", "float32", (64, 64)) for index in range(300)]
    assert len(sent(layout, weights(layout), capacity=2**20)) == 5


def test_a_tensor_that_is_kept_is_not_overwritten() -> None:
    """VLLM keeps a tensor until the rest of its layer has arrived."""
    layout = [WeightLayout(f"weight {index}", "float32", (16,)) for index in range(8)]
    tensors = weights(layout)
    kept = dict(received(layout, sent(layout, tensors, 128), 128))
    assert all(bits(kept[name]) == bits(tensor) for name, tensor in tensors.items())


@given(LAYOUTS, CAPACITIES, st.sets(st.integers(0, 11)))
def test_memory_is_used_again_only_without_tensors_in_it(
    layout: list[WeightLayout], capacity: int, kept: set[int]
) -> None:
    """Some tensors are kept, as slices of which Python knows nothing more: the memory they use stays as it is."""
    tensors, parts = weights(layout), {}
    for index, (name, tensor) in enumerate(received(layout, sent(layout, tensors, capacity), capacity)):
        if index in kept:
            parts[name] = torch.nn.Parameter(tensor.view(-1).view(torch.uint8), requires_grad=False).data[:]
        del tensor
    assert all(part.tolist() == bits(tensors[name]) for name, part in parts.items())


def test_the_memory_of_a_bucket_is_used_again_also_by_the_next_version() -> None:
    """Each page that the kernel provides costs as much as copying it several times."""
    layout = [WeightLayout(f"weight {index}", "uint8", (1000 + index,)) for index in range(50)]
    memory, places = BucketMemory(CPU), set()
    for _ in range(3):
        for _, tensor in received(layout, sent(layout, weights(layout), 1), 1, memory):
            places.add(tensor.data_ptr())
            del tensor
    assert len(places) <= 2


def test_tensors_that_are_parts_of_others_are_sent_as_they_are_described() -> None:
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"rows": whole[1:], "columns": whole[:, 1], "turned": whole.T}
    layout = [WeightLayout(name, "float32", tuple(tensor.shape)) for name, tensor in tensors.items()]
    for capacity in (1, 100, 1000):
        found = dict(received(layout, sent(layout, tensors, capacity), capacity))
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.zeros(2), "b": torch.zeros(3)}, "the weights contain .*name='b'.*shape=\\(3,\\)"),
        ({"a": torch.zeros(2), "b": torch.zeros(2).half()}, "the weights contain .*float16"),
        ({"b": torch.zeros(2), "a": torch.zeros(2)}, "announces .*name='a'"),
        ({"a": torch.zeros(2)}, "ended before b"),
        ({"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(2)}, "lacks the weight c"),
    ],
)
def test_weights_that_differ_from_the_layout_are_refused(
    tensors: dict[str, torch.Tensor], message: str
) -> None:
    layout = [WeightLayout(name, "float32", (2,)) for name in "ab"]
    with pytest.raises(ValueError, match=message):
        sent(layout, tensors, 1000)
