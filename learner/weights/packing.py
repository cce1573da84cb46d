"""Weights as they are published: the parts of a safetensors file, which lie where the weights lie.

Put together they are the file. Ray copies each part into its object store as it is, so that publishing costs one copy;
`safetensors.torch.save` would cost three.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNMENT = 8
"""Of the first weight, in bytes, which the format asks for."""


def file_parts(weights: Mapping[str, Tensor]) -> list[np.ndarray]:
    """The file's header, then each of `weights`, all uint8 [bytes]. Those on the CPU are not copied."""
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
