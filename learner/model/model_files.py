"""The files of a model: the names in safetensors files, and the conversion of GGUF files. Imports no torch.

Names and shapes are read from the headers alone. Source of the format: https://huggingface.co/docs/safetensors,
"Format": 8 little-endian bytes hold the length of the JSON header that follows them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.core.reading import open_regular


def checkpoint_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by its name; empty if there are no safetensors files.

    Raises:
        ValueError: if a file is damaged or not a safetensors file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with os.fdopen(open_regular(path), "rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            shapes |= {
                name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"
            }
        except (
            AttributeError,
            KeyError,
            TypeError,
            OverflowError,
            MemoryError,
            RecursionError,
            ValueError,
        ) as error:
            raise ValueError(f"{path} is not a safetensors file, or is damaged") from error
    return shapes


def matrix_layers(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the names of the modules whose weight is a matrix: linear layers and embeddings."""
    return [
        name.removesuffix(".weight")
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    ]


def unmatched(targets: Sequence[str], modules: Sequence[str]) -> list[str]:
    """Return the targets that match none of `modules`."""
    return [target for target in targets if not any(matches(target, module) for module in modules)]


def matches(target: str, module: str) -> bool:
    """Return True if `target` is the module's full name, or its last parts."""
    return module == target or module.endswith(f".{target}")


def convert_gguf(file: Path, directory: Path) -> None:
    """Dequantize the model in `file` and save it, with its tokenizer, as a float32 Hugging Face directory.

    The result computes with the quantized values; it is not the model from which the file was made.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # transformers treats the loaded model as quantized and refuses to save it. Its weights are plain float32, so we
    # save a model of the same configuration without the quantization.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(directory)
    tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.save_pretrained(directory)
