"""Plan an export, or refuse it with a reason. Ray-free and torch-free, so that a refusal comes at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cluster.configuration.resource_checks import check_resources
from cluster.core.config import RunConfig
from cluster.core.errors import RefusedError
from cluster.models.source import locate, ready_directory
from cluster.run_state.checkpoints import CheckpointStore
from cluster.run_state.manifest import Manifest
from cluster.run_state.run_directory import RunDirectory
from learner.state.state_files import CheckpointError


class ExportRefusedError(RefusedError):
    """The request cannot be carried out. The message is one line with the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """An export whose known conditions are all met."""

    run: RunDirectory
    config: RunConfig
    step: int
    checkpoint: Path
    destination: Path


def plan_export(
    run_directory: Path, destination: Path, step: int | None = None, address: str | None = None
) -> ExportPlan:
    """Find the checkpoint of `step`, or the newest one, and everything else that the export needs. Start nothing.

    Raises:
        RefusedError: if something is missing, damaged or in the way.
    """
    run, config = _opened(run_directory)
    run.export.refuse_obstacles("move it away")
    if address:
        config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"address": address})})
    try:
        store = CheckpointStore(run.checkpoints, config.checkpoint.keep)
        checkpoints = store.complete()
    except CheckpointError as error:
        raise ExportRefusedError(str(error)) from error
    if not checkpoints:
        raise ExportRefusedError(f"{run_directory}: the run has no complete checkpoint yet; let it reach one")
    chosen = max(checkpoints) if step is None else step
    if chosen not in checkpoints:
        steps = ", ".join(map(str, checkpoints))
        raise ExportRefusedError(
            f"{run_directory}: the run has no complete checkpoint of step {chosen}; choose one of the steps {steps}"
        )
    _refuse_missing_model(run, config)
    for problem in check_resources(config, ["learner"]):
        raise ExportRefusedError(str(problem))
    plan = ExportPlan(run, config, chosen, checkpoints[chosen], _free_destination(destination))
    if fault := _fault(store, plan.checkpoint):
        raise ExportRefusedError(f"{fault}; export another checkpoint with --step")
    return plan


def _fault(store: CheckpointStore, checkpoint: Path) -> str | None:
    """Return why a checkpoint cannot be read, or None. A live run does not delete it meanwhile."""
    try:
        with store.held(checkpoint):
            fault = Manifest.read(checkpoint).content_fault(checkpoint)
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{checkpoint.parent} is not writable ({error.strerror})"
    return f"{checkpoint} is damaged: {fault}" if fault else None


def _opened(run_directory: Path) -> tuple[RunDirectory, RunConfig]:
    try:
        run = RunDirectory.existing(run_directory)
        return run, run.read_config()
    except RefusedError as error:
        raise ExportRefusedError(str(error)) from error


def _refuse_missing_model(run: RunDirectory, config: RunConfig) -> None:
    """Refuse if the initial model is gone: the checkpoint has the weights, but not its architecture and tokenizer."""
    fix = (
        f"restore it, or name one of the same architecture and tokenizer as model.source in {run.config_file}"
    )
    try:
        source, ready = locate(config.model), ready_directory(config)
    except ValueError as error:
        raise ExportRefusedError(
            f"model.source: the model that the run started from no longer exists ({_one_line(error)}); {fix}"
        ) from error
    # A starter model that is built again may differ, because its recipe may have changed.
    if source.kind == "starter" and ready is None:
        raise ExportRefusedError(
            "model.source: the starter model that the run started from is no longer in "
            f"{config.model.cache_directory} (or its recipe has changed); {fix}"
        )


def _free_destination(path: Path) -> Path:
    """Return `path` as an absolute path whose parent directory exists.

    Raises:
        ExportRefusedError: if the path is in use, or cannot be created.
    """
    destination = path.expanduser().resolve()
    try:
        if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
            raise ExportRefusedError(
                f"{path}: the destination exists and is not an empty directory; name another one"
            )
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportRefusedError(
            f"{path}: the destination cannot be created ({error.filename}: {error.strerror}); name another one"
        ) from error
    if not os.access(destination.parent, os.W_OK):
        raise ExportRefusedError(f"{path}: the parent directory is not writable; name another destination")
    return destination


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
