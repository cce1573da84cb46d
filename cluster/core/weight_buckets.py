"""Packs the tensors of a version into buckets, so that hundreds of small tensors are a few broadcasts.

Both sides compute the same plan from the layout of the version, so nothing but weights travels:

    send_in_buckets(broadcast, layout, weights.items(), memory)              # the learner
    for name, tensor in receive_in_buckets(broadcast, layout, memory):       # each process of an engine
        ...

The order of the tensors is kept. An engine may hold a tensor until the rest of its layer has arrived, so an order of
our own could make it hold the whole model.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cluster.core.types import WeightLayout

if TYPE_CHECKING:
    import torch

BUCKET_BYTES = 64 * 2**20
"""The size of a bucket. A larger tensor is sent from its own memory, without a copy."""
GATHER_BYTES = 256 * 2**20
"""The largest size of the parameters that the ranks gather at a time to publish them under ZeRO 3. A larger parameter
is gathered alone."""
ALIGNMENT = 64
"""Every tensor begins at a multiple of this number of bytes in its bucket."""

Broadcast = Callable[["torch.Tensor"], None]
"""Copies a contiguous tensor of the learner into the tensor of every engine (`WeightChannel.broadcast`)."""


class Slot(NamedTuple):
    """The place of a tensor in its bucket."""

    layout: WeightLayout
    offset: int
    size: int
    """Both in bytes."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """The tensors of one broadcast."""

    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        """The number of bytes that travel."""
        return self.slots[-1].offset + self.slots[-1].size

    @property
    def is_one_tensor(self) -> bool:
        """True if the tensor is sent from its own memory into its own memory."""
        return len(self.slots) == 1


def plan_buckets(layout: Sequence[WeightLayout], capacity: int = BUCKET_BYTES) -> list[Bucket]:
    """Divide tensors into buckets of at most `capacity` bytes, in their order. A larger tensor is alone in a bucket."""
    buckets: list[Bucket] = []
    slots: list[Slot] = []
    end = 0
    for one in layout:
        size = _size(one)
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        if slots and offset + size > capacity:
            buckets.append(Bucket(tuple(slots)))
            slots, offset = [], 0
        slots.append(Slot(one, offset, size))
        end = offset + size
    return [*buckets, Bucket(tuple(slots))] if slots else buckets


class BucketMemory:
    """Memory for the buckets of one process, bucket after bucket and version after version.

    On the CPU it is kept, because the kernel takes longer to provide new pages than the bytes take to arrive. On GPUs
    torch keeps what was released.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._free: list[np.ndarray] = []

    def take(self, size: int, plan: Sequence[Bucket]) -> torch.Tensor:
        """Return a tensor, uint8 [size], for a bucket of `plan`. Its memory is free again when the last tensor that
        shares it is gone."""
        import torch

        if self.device.type != "cpu" or not size:
            return torch.empty(size, dtype=torch.uint8, device=self.device)
        memory = self._free.pop() if self._free else np.empty(0, dtype=np.uint8)
        if len(memory) < size:
            memory = np.empty(max(bucket.size for bucket in plan), dtype=np.uint8)
        view = memory.data  # which torch holds as long as a tensor uses the memory
        weakref.finalize(view, self._free.append, memory).atexit = False
        return torch.frombuffer(view, dtype=torch.uint8)[:size]


def send_in_buckets(
    broadcast: Broadcast,
    layout: Sequence[WeightLayout],
    tensors: Iterable[tuple[str, torch.Tensor]],
    memory: BucketMemory,
    capacity: int = BUCKET_BYTES,
) -> None:
    """Broadcast `tensors`, which are in the order of `layout`. Only one bucket at a time has memory on the device.

    Raises:
        ValueError: if a tensor is not the one that the layout describes. The receivers would misread it.
    """
    packed_buckets = [bucket for bucket in plan_buckets(layout, capacity) if not bucket.is_one_tensor]
    buffer = memory.take(max((bucket.size for bucket in packed_buckets), default=0), packed_buckets)
    source = iter(tensors)
    for bucket in plan_buckets(layout, capacity):
        packed = _packed(bucket, source, buffer)
        if bucket.size:
            broadcast(packed.to(memory.device))
    if (left := next(source, None)) is not None:
        raise ValueError(f"the published layout lacks the weight {left[0]}")


def receive_in_buckets(
    broadcast: Broadcast,
    layout: Sequence[WeightLayout],
    memory: BucketMemory,
    capacity: int = BUCKET_BYTES,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and tensor of everything that the learner sends with the same `layout` and `capacity`.

    The tensors of a bucket share its memory. An engine may keep a tensor, so memory is used again only when no tensor
    in it is left.
    """
    buckets = plan_buckets(layout, capacity)
    for bucket in buckets:
        buffer = memory.take(bucket.size, buckets)
        if bucket.size:
            broadcast(buffer)
        for slot in bucket.slots:
            yield slot.layout.name, _view(buffer, slot)
        del buffer


def _packed(bucket: Bucket, source: Iterator[tuple[str, torch.Tensor]], buffer: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a bucket, uint8 [bytes]. Several tensors are copied into `buffer`."""
    if bucket.is_one_tensor:
        return _bytes(_next_tensor(source, bucket.slots[0].layout))
    for slot in bucket.slots:
        _view(buffer, slot).copy_(_next_tensor(source, slot.layout))
    return buffer[: bucket.size]


def _next_tensor(source: Iterator[tuple[str, torch.Tensor]], expected: WeightLayout) -> torch.Tensor:
    name, tensor = next(source, ("", None))
    if tensor is None:
        raise ValueError(f"the weights ended before {expected.name}, which the published layout contains")
    found = WeightLayout(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
    if found != expected:
        raise ValueError(f"the published layout announces {expected}, but the weights contain {found}")
    return tensor.detach()


def _size(layout: WeightLayout) -> int:
    import torch

    dtype: torch.dtype = getattr(torch, layout.dtype)
    return prod(layout.shape) * dtype.itemsize


def _view(buffer: torch.Tensor, slot: Slot) -> torch.Tensor:
    """Return the tensor in `slot` of a buffer, uint8 [bytes]."""
    import torch

    part = buffer[slot.offset : slot.offset + slot.size]
    return part.view(getattr(torch, slot.layout.dtype)).view(slot.layout.shape)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the memory of a tensor, uint8 [bytes]."""
    import torch

    return tensor.contiguous().view(-1).view(torch.uint8)
