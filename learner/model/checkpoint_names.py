"""What the safetensors files of a Hugging Face directory hold, from their headers alone. Torch-free.

Source of the format: https://huggingface.co/docs/safetensors, "Format": 8 bytes, little-endian, say how long the JSON
header is that follows them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def checkpoint_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor by its name; empty if there are no safetensors files.

    Raises:
        ValueError: a file is none, or damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with open(path, "rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            shapes |= {
                name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"
            }
        except (AttributeError, KeyError, TypeError, OverflowError, MemoryError, ValueError) as error:
            raise ValueError(f"{path} is not a safetensors file, or is damaged") from error
    return shapes


def matrix_layers(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the modules whose weight is a matrix: linear layers and embeddings."""
    return [
        name.removesuffix(".weight")
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    ]


def unmatched(targets: Sequence[str], modules: Sequence[str]) -> list[str]:
    """Those of `targets` that mean none of `modules`."""
    return [target for target in targets if not any(is_meant(target, module) for module in modules)]


def is_meant(target: str, module: str) -> bool:
    """Whether `target` is the module's name, or what its name ends in, in whole parts."""
    return module == target or module.endswith(f".{target}")
