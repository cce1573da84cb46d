"""What `launch.py export` needs to know, or why it is refused. Ray-free, torch-free: a refusal comes at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cluster.configuration.preflight import check_resources
from cluster.core.config import RunConfig
from cluster.models.source import locate, ready_directory
from cluster.run_state.checkpoints import CheckpointStore
from cluster.run_state.manifest import Manifest
from cluster.run_state.run_directory import RunDirectory
from learner.state.state_files import CheckpointError


class ExportRefusedError(ValueError):
    """What was asked for cannot be exported; says why, and what to do, in one line."""


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """An export that nothing is known to stand in the way of."""

    run: RunDirectory
    config: RunConfig
    step: int
    checkpoint: Path
    destination: Path


def plan_export(
    run_directory: Path, destination: Path, step: int | None = None, address: str | None = None
) -> ExportPlan:
    """Find the checkpoint of `step`, or the newest one, and everything else that is needed. Starts nothing.

    Raises:
        ExportRefusedError: something is missing or in the way.
    """
    run = RunDirectory(run_directory.expanduser().absolute())
    config = _config(run)
    if address:
        config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"address": address})})
    try:
        checkpoints = CheckpointStore(run.checkpoints, config.checkpoint.keep).complete()
    except CheckpointError as error:
        raise ExportRefusedError(str(error)) from error
    if not checkpoints:
        raise ExportRefusedError(f"{run_directory}: it has no complete checkpoint yet; let the run reach one")
    chosen = max(checkpoints) if step is None else step
    if chosen not in checkpoints:
        steps = ", ".join(map(str, checkpoints))
        raise ExportRefusedError(
            f"{run_directory}: it has no complete checkpoint of step {chosen}; there are those of {steps}"
        )
    _refuse_missing_model(run, config)
    for problem in check_resources(config, ["learner"]):
        raise ExportRefusedError(str(problem))
    plan = ExportPlan(run, config, chosen, checkpoints[chosen], _free_destination(destination))
    if fault := Manifest.read(plan.checkpoint).content_fault(plan.checkpoint):
        raise ExportRefusedError(f"{plan.checkpoint} is damaged: {fault}; export another one with --step")
    return plan


def _config(run: RunDirectory) -> RunConfig:
    try:
        return run.read_config()
    except (FileNotFoundError, NotADirectoryError):
        raise ExportRefusedError(
            f"{run.path}: there is no run here (no {run.config_file.name}); name a run directory, such as runs/demo"
        ) from None
    except ValueError as error:
        raise ExportRefusedError(
            f"{run.config_file}: it cannot be read ({_one_line(error)}); mend the file"
        ) from error


def _refuse_missing_model(run: RunDirectory, config: RunConfig) -> None:
    """The checkpoint has the weights. Architecture and tokenizer are those of the model that the run began with."""
    mend = f"put it back, or name one of the same architecture and tokenizer as model.source in {run.config_file}"
    try:
        source, ready = locate(config.model), ready_directory(config)
    except ValueError as error:
        raise ExportRefusedError(
            f"model.source: the model that the run began with is no longer there ({_one_line(error)}); {mend}"
        ) from error
    # A starter that is built anew need not be the same: its recipe may have changed.
    if source.kind == "starter" and ready is None:
        raise ExportRefusedError(
            "model.source: the starter model that the run began with is no longer in "
            f"{config.model.cache_directory} (or its recipe has changed); {mend}"
        )


def _free_destination(path: Path) -> Path:
    """`path`, absolute, in a directory that is there.

    Raises:
        ExportRefusedError: it is taken, or cannot be made.
    """
    destination = path.expanduser().resolve()
    try:
        if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
            raise ExportRefusedError(
                f"{path}: it exists and is not an empty directory; name another destination"
            )
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportRefusedError(
            f"{path}: it cannot be made ({error.filename}: {error.strerror}); name another destination"
        ) from error
    if not os.access(destination.parent, os.W_OK):
        raise ExportRefusedError(f"{path}: its parent directory cannot be written; name another destination")
    return destination


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
