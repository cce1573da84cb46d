"""Plan an export, or refuse it with a reason. Ray-free and torch-free, so that a refusal comes at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cluster.commands.run_checkpoints import (
    checkpoint_fault,
    complete_checkpoints,
    refuse_missing_checkpoint,
    refuse_missing_model,
)
from cluster.configuration.resource_checks import check_resources
from cluster.core.addresses import cluster_address
from cluster.core.config import RunConfig
from cluster.core.errors import RefusedError
from cluster.run_state.run_directory import RunDirectory


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
        AddressError: if the cluster's address is none.
    """
    run = RunDirectory.existing(run_directory)
    config = run.read_config()
    run.export.refuse_obstacles("move it away")
    if address:
        config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"address": address})})
    cluster_address(config.cluster.address)
    store, checkpoints = complete_checkpoints(run, config)
    if not checkpoints:
        raise RefusedError(f"{run_directory}: the run has no complete checkpoint yet; let it reach one")
    chosen = max(checkpoints) if step is None else step
    refuse_missing_checkpoint(run, checkpoints, chosen)
    refuse_missing_model(run, config)
    for problem in check_resources(config, ["learner"]):
        raise RefusedError(str(problem))
    plan = ExportPlan(run, config, chosen, checkpoints[chosen], _free_destination(destination))
    if fault := checkpoint_fault(store, plan.checkpoint):
        raise RefusedError(f"{fault}; export another checkpoint with --step")
    return plan


def _free_destination(path: Path) -> Path:
    """Return `path` as an absolute path whose parent directory exists.

    Raises:
        RefusedError: if the path is in use, or cannot be created.
    """
    destination = path.expanduser().resolve()
    try:
        if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
            raise RefusedError(
                f"{path}: the destination exists and is not an empty directory; name another one"
            )
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(
            f"{path}: the destination cannot be created ({error.filename}: {error.strerror}); name another one"
        ) from error
    if not os.access(destination.parent, os.W_OK):
        raise RefusedError(f"{path}: the parent directory is not writable; name another destination")
    return destination
