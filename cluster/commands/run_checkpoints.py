"""Find what a command needs of a run that has checkpoints, or refuse the request. Ray-free and torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cluster.core.config import RunConfig
from cluster.core.errors import RefusedError
from cluster.core.reading import shown_path
from cluster.models.source import locate, ready_directory
from cluster.run_state.checkpoints import CheckpointStore
from cluster.run_state.manifest import Manifest
from cluster.run_state.run_directory import RunDirectory
from learner.state.state_files import CheckpointError


def complete_checkpoints(run: RunDirectory, config: RunConfig) -> tuple[CheckpointStore, dict[int, Path]]:
    """Return the store of a run's checkpoints, and its complete checkpoints by step.

    Raises:
        RefusedError: if another version of this program wrote one.
    """
    store = CheckpointStore(run.checkpoints, config.checkpoint.keep)
    try:
        return store, store.complete()
    except CheckpointError as error:
        raise RefusedError(str(error)) from error


def refuse_missing_checkpoint(run: RunDirectory, checkpoints: Mapping[int, Path], step: int) -> None:
    """Refuse unless there is a complete checkpoint of `step`.

    Raises:
        RefusedError: if there is no such checkpoint. The message names the steps that have one.
    """
    if step not in checkpoints:
        steps = ", ".join(map(str, checkpoints)) or "none"
        raise RefusedError(
            f"{shown_path(run.path)}: the run has no complete checkpoint of step {step}; choose one of the steps "
            f"{steps}"
        )


def checkpoint_fault(store: CheckpointStore, checkpoint: Path) -> str | None:
    """Return why a checkpoint cannot be read, or None. A live run does not delete it meanwhile."""
    try:
        with store.held(checkpoint):
            fault = Manifest.read(checkpoint).content_fault(checkpoint)
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{checkpoint.parent} is not writable ({error.strerror})"
    return f"{checkpoint} is damaged: {fault}" if fault else None


def refuse_missing_model(run: RunDirectory, config: RunConfig) -> None:
    """Refuse if the initial model is gone: a checkpoint has the weights, but not its architecture and tokenizer.

    Raises:
        RefusedError: with the remedy.
    """
    fix = (
        f"restore it, or name one of the same architecture and tokenizer as model.source in {run.config_file}"
    )
    try:
        source, ready = locate(config.model), ready_directory(config)
    except ValueError as error:
        raise RefusedError(
            "model.source: the model that the run started from no longer exists "
            f"({' '.join(str(error).split())}); {fix}"
        ) from error
    # A starter model that is built again may differ, because its recipe may have changed.
    if source.kind == "starter" and ready is None:
        raise RefusedError(
            "model.source: the starter model that the run started from is no longer in "
            f"{config.model.cache_directory} (or its recipe has changed); {fix}"
        )
