"""The random number generators of a process: Python's, NumPy's, torch's, and those of its GPUs."""

from __future__ import annotations

import random
from pathlib import Path

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
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
        file,
    )


def load_random_state(file: Path) -> None:
    """From what is drawn next on, go on as the process that saved it. With other GPUs, only the others do."""
    state = torch.load(file, map_location="cpu", weights_only=False)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
