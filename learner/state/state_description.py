"""What the state in a checkpoint is of, and whether a run can go on from it. Pure, torch-free: it can be asked before
anything starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

FILE_NAME = "description.json"


@dataclass(frozen=True, slots=True)
class StateDescription:
    """Of a learner's state: the model, and how it is cut up."""

    architecture: str
    """The model's class in transformers."""
    dtype: str
    ranks: int
    zero_stage: int
    shapes: Mapping[str, tuple[int, ...]]
    """Of all parameters, by name. An adapter's are among them."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> StateDescription:
        """What `to_json` wrote.

        Raises:
            ValueError: it is no description.
        """
        try:
            values = json.loads(text)
            shapes = {name: tuple(shape) for name, shape in values.pop("shapes").items()}
            return StateDescription(shapes=shapes, **values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no description of a learner's state ({error!r})") from error


def obstacle(saved: StateDescription, dtype: str, zero_stage: int) -> str | None:
    """Why a run with these settings cannot go on from `saved`, whatever its model is; None if it can."""
    if saved.dtype != dtype:
        return f"its weights are {saved.dtype}, and model.dtype is {dtype}: set it back"
    if _layout(saved.zero_stage) != _layout(zero_stage):
        return (
            f"it was written with learner.zero_stage {saved.zero_stage} and cannot be read with {zero_stage} "
            "(among 1 and 2 it may change): set it back"
        )
    return None


def other_model(saved: StateDescription, present: StateDescription) -> str | None:
    """How the model in a checkpoint differs from the one that is there; None if it does not."""
    if _has_adapter(saved) != _has_adapter(present):
        return f"it was trained {_with_adapter(saved)} LoRA, and this run trains {_with_adapter(present)}"
    if saved.architecture != present.architecture:
        return f"it is of a {saved.architecture}, and this run's model is a {present.architecture}"
    for name in dict.fromkeys([*saved.shapes, *present.shapes]):
        if (there := saved.shapes.get(name)) != (here := present.shapes.get(name)):
            return f"in it {name} {_shape(there)}, and in this run's model it {_shape(here)}"
    return None


def resizing(saved: StateDescription, ranks: int, zero_stage: int) -> bool:
    """Whether the state has to be cut up anew. Without ZeRO every rank has all of it."""
    return zero_stage > 0 and (saved.ranks, saved.zero_stage) != (ranks, zero_stage)


def _layout(zero_stage: int) -> int:
    """ZeRO stages with the same number cut an optimizer's state up in the same way."""
    return {0: 0, 1: 1, 2: 1, 3: 3}[zero_stage]


def _has_adapter(description: StateDescription) -> bool:
    return any(".lora_" in name for name in description.shapes)


def _with_adapter(description: StateDescription) -> str:
    return "with" if _has_adapter(description) else "without"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "is missing" if shape is None else f"is {' × '.join(map(str, shape)) or 'a number'}"
