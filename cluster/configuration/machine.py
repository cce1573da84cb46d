"""A machine, or several equal ones, against which a configuration is checked: this one, or a described one. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cluster.configuration.devices import Devices, select

_DESCRIPTION = re.compile(
    r"(?:([0-9]{1,4})x)?([0-9]{1,3})x([a-z][a-z0-9]{0,30})-([0-9]{1,4})g(?:i?b)?", re.IGNORECASE | re.ASCII
)
_EXAMPLES = "1xH100-80G, 8xA100-40G, 1xRTX4090-24G or, for two nodes, 2x8xH100-80G"
_CAPABILITIES: dict[str, tuple[int, int]] = {
    "V100": (7, 0),
    "T4": (7, 5),
    "A100": (8, 0),
    "A10": (8, 6),
    "A40": (8, 6),
    "A6000": (8, 6),
    "RTX3090": (8, 6),
    "RTX4090": (8, 9),
    "L4": (8, 9),
    "L40": (8, 9),
    "L40S": (8, 9),
    "H100": (9, 0),
    "H200": (9, 0),
    "B200": (10, 0),
    "RTX5090": (12, 0),
}
"""The compute capability of a GPU by its name. Source: https://developer.nvidia.com/cuda-gpus."""
USABLE = 0.99
"""The fraction of a GPU's nominal memory that programs can use: an H100 of 80 GB shows 79.6 GiB."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Equal nodes with equal GPUs."""

    nodes: int
    gpus: int
    """The number of GPUs of each node."""
    gpu: str
    """The name of the GPUs."""
    memory_gib: float
    """The usable memory of each GPU."""
    capability: tuple[int, int] | None = None
    """The compute capability, if it is known."""

    def __str__(self) -> str:
        nodes = f"{self.nodes} nodes with {self.gpus}" if self.nodes > 1 else str(self.gpus)
        return f"{nodes} × {self.gpu} ({self.memory_gib:.1f} GiB)"


def parse_machine(text: str) -> Machine:
    """Return the machine that a description such as `2x8xH100-80G` names.

    Raises:
        ValueError: if it is no such description.
    """
    found = _DESCRIPTION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text[:60]!r} describes no machine: write {_EXAMPLES}")
    nodes, gpus, memory_gib = int(found[1] or 1), int(found[2]), int(found[4])
    if not (nodes and gpus and memory_gib):
        raise ValueError(f"{text!r} describes a machine without GPUs: write {_EXAMPLES}")
    name = found[3].upper()
    return Machine(nodes, gpus, name, memory_gib * USABLE, _CAPABILITIES.get(name))


def this_machine(devices: Devices | None, variable: str | None) -> Machine | None:
    """Return this machine with its visible GPUs or MIG slice, all taken to be like the smallest. None if it has none
    that are known.

    Args:
        devices: The GPUs of this machine.
        variable: The value of `CUDA_VISIBLE_DEVICES`, or None if it is not set.
    """
    if devices is None:
        return None
    selected = select(devices, variable)
    visible = (*selected.gpus, *selected.slices)
    if not visible or any(gpu.sliced for gpu in visible):
        return None
    smallest = min(visible, key=lambda gpu: gpu.memory_gib)
    capability = min(gpu.capability for gpu in visible)
    return Machine(1, len(visible), smallest.name, smallest.memory_gib, capability)
