"""The description of the learner's state in a checkpoint, and the check whether a run can resume from it.

Pure and torch-free, so that the check can be made before anything starts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.core.reading import read_text, shown_path
from learner.state.state_files import CheckpointError

FILE_NAME = "description.json"


@dataclass(frozen=True, slots=True)
class StateDescription:
    """The model of a learner's state, and its partitioning."""

    architecture: str
    """The model's class in transformers."""
    dtype: str
    ranks: int
    zero_stage: int
    shapes: Mapping[str, tuple[int, ...]]
    """The shapes of all parameters by name, including an adapter's."""

    def to_json(self) -> str:
        """Return the content of `description.json`."""
        return json.dumps(asdict(self))

    @staticmethod
    def read(directory: Path) -> StateDescription:
        """Read the description in the directory of a learner's state.

        Raises:
            CheckpointError: if it does not exist, or cannot be read.
        """
        file = directory / FILE_NAME
        try:
            return StateDescription.from_json(read_text(file))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{shown_path(file)} cannot be read: {' '.join(str(error).split())}; restore the checkpoint from a copy"
            ) from error

    @staticmethod
    def from_json(text: str) -> StateDescription:
        """Read a text that `to_json` wrote.

        Raises:
            ValueError: if the text is not a description.
        """
        try:
            values = json.loads(text)
            shapes = {name: tuple(shape) for name, shape in values.pop("shapes").items()}
            return StateDescription(shapes=shapes, **values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is not a description of a learner's state ({error!r})") from error


def obstacle(saved: StateDescription, dtype: str, zero_stage: int) -> str | None:
    """Return the reason why a run with these settings cannot resume from `saved`, or None. Models are not compared."""
    if saved.dtype != dtype:
        return f"its weights are {saved.dtype}, and model.dtype is {dtype}: set it back"
    if _layout(saved.zero_stage) != _layout(zero_stage):
        return (
            f"it was written with learner.zero_stage {saved.zero_stage} and cannot be read with {zero_stage} "
            "(only a change between 1 and 2 is possible): set it back"
        )
    return None


def other_model(saved: StateDescription, present: StateDescription) -> str | None:
    """Return the first difference between the model in a checkpoint and the present one, or None if they agree."""
    if _has_adapter(saved) != _has_adapter(present):
        return f"it was trained {_with_adapter(saved)} LoRA, and this run trains {_with_adapter(present)}"
    if saved.architecture != present.architecture:
        return f"its model is a {saved.architecture}, and this run's model is a {present.architecture}"
    for name in dict.fromkeys([*saved.shapes, *present.shapes]):
        if (there := saved.shapes.get(name)) != (here := present.shapes.get(name)):
            return f"in the checkpoint {name} {_shape(there)}, and in this run's model it {_shape(here)}"
    return None


def resizing(saved: StateDescription, ranks: int, zero_stage: int) -> bool:
    """Return True if the state must be partitioned again. Without ZeRO every rank holds all of it."""
    return zero_stage > 0 and (saved.ranks, saved.zero_stage) != (ranks, zero_stage)


def _layout(zero_stage: int) -> int:
    """Return a number that is equal for ZeRO stages that partition the optimizer's state in the same way."""
    return {0: 0, 1: 1, 2: 1, 3: 3}[zero_stage]


def _has_adapter(description: StateDescription) -> bool:
    return any(".lora_" in name for name in description.shapes)


def _with_adapter(description: StateDescription) -> str:
    return "with" if _has_adapter(description) else "without"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "is missing" if shape is None else f"is {' × '.join(map(str, shape)) or 'a number'}"
