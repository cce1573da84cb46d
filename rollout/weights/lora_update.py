"""Applies low-rank weight updates to the weights that an engine loaded at its start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from cluster.core.types import LEFT_FACTOR, RIGHT_FACTOR


def is_low_rank(names: Iterable[str]) -> bool:
    """Return True if tensors with these names are low-rank updates, and False if they are whole weights."""
    return any(name.endswith(LEFT_FACTOR) for name in names)


def updated_weights(
    directory: Path, updates: Mapping[str, Tensor], device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and tensor of every weight of a Hugging Face directory, with `updates` added on `device`.

    The files are memory-mapped, so all engines of a node share their pages, and only one updated tensor at a time has
    memory of its own, on the device. Updated weights are float32. So they are rounded once, when they are loaded into
    the model. Other weights stay on the host, from where they are loaded.

    Raises:
        ValueError: if the directory has no weight for an update. Raised after the last weight.
    """
    waiting = {name.removesuffix(LEFT_FACTOR) for name in updates if name.endswith(LEFT_FACTOR)}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # `file` is not a mapping
                weight = file.get_tensor(name)
                if name in waiting:
                    waiting.remove(name)
                    left, right = (
                        updates[name + factor].to(device) for factor in (LEFT_FACTOR, RIGHT_FACTOR)
                    )
                    weight = torch.addmm(weight.to(device).float(), left, right)
                yield name, weight
    if waiting:
        raise ValueError(
            f"{directory} does not contain the weights that the update changes: {', '.join(sorted(waiting))}"
        )
