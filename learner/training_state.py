"""A rank's part of a checkpoint: what it writes, and how it goes on from there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def save_training_state(engine: DeepSpeedEngine, directory: Path) -> None:
    """Write this rank's part of the training state under `directory`. A collective. The caller marks it complete
    (DeepSpeed's own `latest` file is written too early to be trusted)."""
    engine.save_checkpoint(
        str(directory), tag="state", save_latest=False, exclude_frozen_parameters=_has_frozen(engine)
    )


def load_training_state(engine: DeepSpeedEngine, directory: Path) -> None:
    """Restore what `save_training_state` wrote. A collective.

    Raises:
        RuntimeError: nothing was restored.
    """
    path, _ = engine.load_checkpoint(str(directory), tag="state", load_module_strict=not _has_frozen(engine))
    if path is None:
        raise RuntimeError(f"DeepSpeed found no training state in {directory}")


def _has_frozen(engine: DeepSpeedEngine) -> bool:
    """Whether adapters alone are trained. The rest is what the model's own files say, and is not saved."""
    return not all(parameter.requires_grad for parameter in engine.module.parameters())
