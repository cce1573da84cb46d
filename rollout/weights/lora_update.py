"""The weights of a version that was published as low-rank updates of those that an engine loaded at its start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from cluster.core.types import LEFT_FACTOR, RIGHT_FACTOR


def is_low_rank(names: Iterable[str]) -> bool:
    """Whether tensors of these names are updates, and not whole weights."""
    return any(name.endswith(LEFT_FACTOR) for name in names)


def updated_weights(directory: Path, updates: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """All weights of the Hugging Face directory with `updates` added, under its names, one after the other.

    The files are mapped: all engines of a node read the same pages, and one tensor at a time is in memory of its own.
    An updated weight is added up and left in float32, so that it is rounded once, by whoever takes it.

    Raises:
        ValueError: the directory has no weight for an update. Known only after the last weight.
    """
    waiting = {name.removesuffix(LEFT_FACTOR) for name in updates if name.endswith(LEFT_FACTOR)}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                weight = file.get_tensor(name)
                if name in waiting:
                    waiting.remove(name)
                    weight = weight.float() + updates[name + LEFT_FACTOR] @ updates[name + RIGHT_FACTOR]
                yield name, weight
    if waiting:
        raise ValueError(f"{directory} has no weights to update by the names {', '.join(sorted(waiting))}")
