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

from cluster.core.types import PolicyVersion

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNMENT = 8
"""The alignment of the first tensor in bytes, which the format requires."""


class PullSender:
    """A `WeightSender`. A version is published when it is in the object store, from which workers fetch it."""

    def __init__(self, device: torch.device) -> None:
        pass

    def publish(self, version: PolicyVersion, tensors: Mapping[str, Tensor]) -> PolicyVersion:
        return replace(version, weights=ray.put(file_parts(tensors)))


def file_parts(weights: Mapping[str, Tensor]) -> list[np.ndarray]:
    """Return the file's header, then each of `weights`, all uint8 [bytes]. Tensors on the CPU are not copied."""
    header: dict[str, dict[str, object]] = {}
    parts: list[np.ndarray] = []
    end = 0
    # Widest first, so that each begins at a multiple of its own width.
    for name, weight in sorted(weights.items(), key=lambda item: (-item[1].element_size(), item[0])):
        parts.append(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        begin, end = end, end + len(parts[-1])
        header[name] = {
            "dtype": _NAMES[weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return [np.frombuffer(len(text).to_bytes(8, "little") + text, dtype=np.uint8), *parts]
