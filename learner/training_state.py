"""A rank's part of a checkpoint: what it writes, and how it goes on from there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def save_training_state(engine: DeepSpeedEngine, directory: Path) -> None:
    """Write this rank's part of the training state under `directory`. A collective. The caller marks it complete
    (DeepSpeed's own `latest` file is written too early to be trusted)."""
    engine.save_checkpoint(str(directory), tag="state", save_latest=False)


def load_training_state(engine: DeepSpeedEngine, directory: Path) -> None:
    """Restore what `save_training_state` wrote. A collective.

    Raises:
        RuntimeError: nothing was restored.
    """
    path, _ = engine.load_checkpoint(str(directory), tag="state")
    if path is None:
        raise RuntimeError(f"DeepSpeed found no training state in {directory}")
