"""The transport `pull`, learner's side: a version is a safetensors file in Ray's object store, in parts.

The parts, put together, are the file. Ray copies each part into its object store as it is, so publishing costs one copy
of the weights; `safetensors.torch.save` would cost three.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import ray
import torch
from torch import Tensor

from cluster.core.types import SAFETENSORS_TYPES, PolicyVersion

_NAMES = {getattr(torch, name): short for short, name in SAFETENSORS_TYPES.items()}
_ALIGNMENT = 8
"""The alignment of the first tensor in bytes, which the format requires."""


class PullSender:
    """A `WeightSender`. A version is published when it is in the object store, from which workers fetch it."""

    def __init__(self, device: torch.device) -> None:
        self._host = HostCopy()

    def publish(self, version: PolicyVersion, tensors: Mapping[str, Tensor]) -> PolicyVersion:
        return replace(version, weights=ray.put(file_parts(tensors, version.version, self._host)))


class HostCopy:
    """The host's memory for weights of a GPU. It is pinned, so that the GPU writes it at full speed, and kept, because
    pinning takes longer than a copy. Each `take` overwrites what the one before has returned."""

    def __init__(self, pin: bool = True) -> None:
        self._pin = pin
        self._memory = torch.empty(0, dtype=torch.uint8)

    def take(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the bytes of each tensor on the host, uint8 [bytes]."""
        sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
        if len(self._memory) < sum(sizes):
            self._memory = torch.empty(0, dtype=torch.uint8)  # both at once may not fit
            self._memory = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=self._pin)
        taken = torch.split(self._memory[: sum(sizes)], sizes)
        for memory, tensor in zip(taken, tensors, strict=True):
            memory.copy_(_bytes(tensor), non_blocking=True)
        for device in {tensor.device for tensor in tensors if tensor.device.type == "cuda"}:
            torch.cuda.synchronize(device)
        return taken


def file_parts(weights: Mapping[str, Tensor], version: int, host: HostCopy) -> list[np.ndarray]:
    """Return the file's header, then each of `weights`, all uint8 [bytes]. Tensors on the CPU are not copied; others
    come through `host`."""
    header: dict[str, dict[str, object]] = {"__metadata__": {"version": str(version)}}
    # Widest first, so that each begins at a multiple of its own width.
    ordered = sorted(weights.items(), key=lambda item: (-item[1].element_size(), item[0]))
    elsewhere = {name: weight.detach() for name, weight in ordered if weight.device.type != "cpu"}
    copied = dict(zip(elsewhere, host.take(list(elsewhere.values())), strict=True)) if elsewhere else {}
    parts: list[np.ndarray] = []
    end = 0
    for name, weight in ordered:
        content = copied[name] if name in copied else _bytes(weight.detach())
        parts.append(content.numpy())
        begin, end = end, end + len(parts[-1])
        header[name] = {
            "dtype": _NAMES[weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return [np.frombuffer(len(text).to_bytes(8, "little") + text, dtype=np.uint8), *parts]


def _bytes(tensor: Tensor) -> Tensor:
    """Return the memory of a tensor, uint8 [bytes]. A tensor that is not contiguous is copied."""
    return tensor.contiguous().view(-1).view(torch.uint8)
