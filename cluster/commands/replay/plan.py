"""Find the batch, the configuration and the weights of a replay, or refuse it. Ray-free and torch-free."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cluster.commands.run_checkpoints import (
    checkpoint_fault,
    complete_checkpoints,
    refuse_missing_checkpoint,
    refuse_missing_model,
)
from cluster.core.config import RunConfig
from cluster.core.errors import RefusedError
from cluster.core.reading import shown_path
from cluster.core.types import ScoredGroup
from cluster.models.source import described_directory
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking.kept_batch import read_batch

_NAME = re.compile(r"step_([0-9]+)-([0-9]+)\.jsonl")


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """A replay whose known conditions are all met."""

    run: RunDirectory
    config: RunConfig
    batch: Path
    step: int
    """The step of the run that the batch was for."""
    groups: tuple[ScoredGroup, ...]
    model: Path
    """The directory of the model that the run started with."""
    weights_step: int
    """The step after which the weights were saved; 0 for those of `model`."""
    checkpoint: Path | None
    """The checkpoint with the weights, or None for those of `model`."""


def plan_replay(place: Path, weights_step: int | None = None) -> ReplayPlan:
    """Find everything that the replay needs. Compute nothing.

    Args:
        place: A run directory, whose newest batch is used, or the file of a batch in it.
        weights_step: The step of the checkpoint; by default the newest one before the batch, and without one the model
            that the run started with.

    Raises:
        RefusedError: if something is missing or damaged.
    """
    run, batch = _found(place)
    config = run.read_config()
    found = _NAME.fullmatch(batch.name)
    if found is None:
        raise RefusedError(
            f"{shown_path(batch)}: this is not the name of a kept batch; name one such as step_000012-1.jsonl"
        )
    step = int(found[1])
    try:
        groups = read_batch(batch)
    except FileNotFoundError as error:
        raise RefusedError(f"{shown_path(batch)}: there is no such file; name a run directory") from error
    if len(groups) % config.learner.mini_batches:
        raise RefusedError(
            f"{shown_path(batch)}: its {len(groups)} groups cannot be divided into learner.mini_batches = "
            f"{config.learner.mini_batches} of {shown_path(run.config_file)}; restore the settings of the batch's run"
        )
    weights_step, checkpoint = _weights(run, config, step, weights_step)
    return ReplayPlan(run, config, batch, step, tuple(groups), _model(run, config), weights_step, checkpoint)


def _found(place: Path) -> tuple[RunDirectory, Path]:
    """Return the run and the file of the batch."""
    try:
        is_file = not place.expanduser().is_dir() and place.suffix == ".jsonl"
    except (OSError, RuntimeError, ValueError):  # no such user's home, a null character
        is_file = False
    if is_file:
        batch = place.expanduser().absolute()
        return RunDirectory.existing(batch.parent.parent), batch
    run = RunDirectory.existing(place)
    batches = {
        int(found[2]): file
        for file in run.failed_batch_files
        if (found := _NAME.fullmatch(file.name)) is not None
    }
    if not batches:
        raise RefusedError(
            f"{shown_path(run.failed_batches)}: the run has kept no batch; it keeps one when an update is not finite"
        )
    return run, batches[max(batches)]


def _weights(run: RunDirectory, config: RunConfig, step: int, wanted: int | None) -> tuple[int, Path | None]:
    """Return the step and the path of the checkpoint with the weights; 0 and None for the initial model."""
    store, checkpoints = complete_checkpoints(run, config)
    chosen = max((each for each in checkpoints if each < step), default=0) if wanted is None else wanted
    if chosen == 0 and 0 not in checkpoints:
        return 0, None
    refuse_missing_checkpoint(run, checkpoints, chosen)
    if fault := checkpoint_fault(store, checkpoints[chosen]):
        raise RefusedError(f"{fault}; use another checkpoint with --step")
    return chosen, checkpoints[chosen]


def _model(run: RunDirectory, config: RunConfig) -> Path:
    refuse_missing_model(run, config)
    directory = described_directory(config)
    if directory is None:
        raise RefusedError(
            f"model.source: {config.model.source} is not on this machine; use a machine on which the run was started, "
            f"or name a directory with the model in {shown_path(run.config_file)}"
        )
    return directory
