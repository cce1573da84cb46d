"""The transport `pull`, learner's side: a version is a safetensors file in Ray's object store, in parts.

The parts, put together, are the file. Ray copies each part into its object store as it is, so publishing costs one copy
of the weights; `safetensors.torch.save` would cost three.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import ray
import torch
from torch import Tensor

from cluster.core.types import SAFETENSORS_TYPES, PolicyVersion

_NAMES = {getattr(torch, name): short for short, name in SAFETENSORS_TYPES.items()}
_ALIGNMENT = 8
"""The alignment of the first tensor in bytes, which the format requires."""
SMALLEST_CHUNK, LARGEST_CHUNK = 256 * 2**20, 2**30
"""The sizes in bytes of the chunks in which the host's memory for copies is allocated. Each is as large as all before
it together, within these limits; a larger tensor has a larger chunk. All are powers of two, to which torch rounds
pinned memory up: one allocation for a whole model could be almost twice as large as it."""


class PullSender:
    """A `WeightSender`. A version is published when it is in the object store, from which workers fetch it."""

    def __init__(self, device: torch.device) -> None:
        self._host = HostCopy()

    def publish(self, version: PolicyVersion, tensors: Mapping[str, Tensor]) -> PolicyVersion:
        return replace(version, weights=ray.put(file_parts(tensors, version.version, self._host)))


class HostCopy:
    """The host's memory for weights of a GPU. It is pinned, so that the GPU writes it at full speed, and kept, because
    pinning takes longer than a copy. After `restart`, the memory of earlier copies is used again."""

    def __init__(self, pin: bool = True) -> None:
        self._pin = pin
        self._chunks: list[Tensor] = []
        self._ends: list[int] = []
        """The position in each chunk, in bytes, where its free memory begins."""
        self._gpus: set[torch.device] = set()
        """The devices that may still copy."""

    @property
    def size(self) -> int:
        """The size of the memory in bytes."""
        return sum(map(len, self._chunks))

    def restart(self) -> None:
        """Free the memory of all copies."""
        self._ends = [0] * len(self._chunks)

    def take(self, tensor: Tensor) -> Tensor:
        """Begin to copy a tensor. Return its bytes on the host, uint8 [bytes], which are valid after `wait`."""
        size = tensor.numel() * tensor.element_size()
        # The first chunk with enough free memory. Where the large tensors leave some, small ones fill it.
        fitting = (
            index for index, chunk in enumerate(self._chunks) if self._ends[index] + size <= len(chunk)
        )
        index = next(fitting, len(self._chunks))
        if index == len(self._chunks):
            length = max(size, min(LARGEST_CHUNK, max(SMALLEST_CHUNK, self.size)))
            length = 1 << (length - 1).bit_length()
            self._chunks.append(torch.empty(length, dtype=torch.uint8, pin_memory=self._pin))
            self._ends.append(0)
        taken = self._chunks[index][self._ends[index] : self._ends[index] + size]
        self._ends[index] += size
        if tensor.device.type == "cuda":
            self._gpus.add(tensor.device)
        return taken.copy_(_bytes(tensor), non_blocking=True)

    def wait(self) -> None:
        """Wait for all copies."""
        while self._gpus:
            torch.cuda.synchronize(self._gpus.pop())


def file_parts(weights: Mapping[str, Tensor], version: int, host: HostCopy) -> list[np.ndarray]:
    """Return the file's header, then each of `weights`, all uint8 [bytes]. Tensors on the CPU are not copied; those on
    a GPU are copied through `host` one after the other, so that no more than one must be gathered at a time."""
    host.restart()
    described: list[tuple[str, torch.dtype, list[int], Tensor]] = []
    for name, weight in weights.items():
        content = _bytes(weight.detach()) if weight.device.type == "cpu" else host.take(weight.detach())
        described.append((name, weight.dtype, list(weight.shape), content))
    host.wait()
    header: dict[str, dict[str, object]] = {"__metadata__": {"version": str(version)}}
    parts: list[np.ndarray] = []
    end = 0
    # Widest first, so that each begins at a multiple of its own width.
    for name, dtype, shape, content in sorted(described, key=lambda one: (-one[1].itemsize, one[0])):
        parts.append(content.numpy())
        begin, end = end, end + len(parts[-1])
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return [np.frombuffer(len(text).to_bytes(8, "little") + text, dtype=np.uint8), *parts]


def _bytes(tensor: Tensor) -> Tensor:
    """Return the memory of a tensor, uint8 [bytes]. A tensor that is not contiguous is copied."""
    return tensor.contiguous().view(-1).view(torch.uint8)
