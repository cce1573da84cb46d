"""The random number generators of a process: Python's, NumPy's, torch's, and those of its GPUs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


def save_random_state(file: Path) -> None:
    """Write down where all of them are.

    Raises:
        OSError, RuntimeError: it cannot be written.
    """
    torch.save(
        {
            "python": random.getstate(),
            "numpy": _without_arrays(np.random.get_state()),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
        file,
    )


def _without_arrays(state: Any) -> Any:
    """NumPy's state with a tensor in place of its array: what is loaded may hold no objects."""
    generator, keys, *rest = state
    return generator, torch.from_numpy(keys.astype(np.int64)), *rest


def load_random_state(file: Path) -> None:
    """From what is drawn next on, go on as the process that saved it. With other GPUs, only the others do.

    Raises:
        pickle.UnpicklingError: the file holds anything but numbers and tensors.
    """
    state = torch.load(file, map_location="cpu", weights_only=True)
    random.setstate(state["python"])
    generator, keys, *rest = state["numpy"]
    np.random.set_state((generator, keys.numpy(), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
