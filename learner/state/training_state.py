"""A rank's part of a checkpoint: what it writes, and how it goes on from there.

learner/
    description.json        what all of it is of (learner/state/state_description.py)
    state/                  DeepSpeed's: weights, optimizer and learning-rate schedule
    random/rank_0.pt        the random number generators of each rank
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.core.actor_options import LearnerOptions
from learner.state.random_state import load_random_state, save_random_state
from learner.state.resizing import load_resized
from learner.state.state_description import FILE_NAME, StateDescription, obstacle, other_model, resizing
from learner.state.state_files import CheckpointError, CheckpointWriteError, FileRecord, seal, why_not_written

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


_TAG = "state"


def save_training_state(
    engine: DeepSpeedEngine, directory: Path, options: LearnerOptions
) -> dict[Path, FileRecord]:
    """Write this rank's part of the training state under `directory`, and wait until it is on the disk. A collective.
    Returns the files that this rank wrote. The caller marks the checkpoint complete (DeepSpeed's own `latest` file is
    written too early to be trusted).

    Raises:
        CheckpointWriteError: it cannot be written. The other ranks may then wait for this one in a collective.
    """
    rank = engine.global_rank
    try:
        engine.save_checkpoint(
            str(directory), tag=_TAG, save_latest=False, exclude_frozen_parameters=_has_frozen(engine)
        )
        (directory / "random").mkdir(exist_ok=True)
        save_random_state(_random_file(directory, rank))
        if rank == 0:
            (directory / FILE_NAME).write_text(describe(engine, options).to_json(), encoding="utf-8")
        return {file: seal(file) for file in directory.rglob("*") if file.is_file() and _writer(file) == rank}
    except (OSError, RuntimeError) as error:  # torch.save says RuntimeError on a full disk
        if (why := why_not_written(error, directory)) is None:
            raise
        raise CheckpointWriteError(f"{directory}: {why}") from error


def load_training_state(
    engine: DeepSpeedEngine, directory: Path, options: LearnerOptions, scratch: Path
) -> None:
    """Restore what `save_training_state` wrote, with any number of ranks. A collective.

    Learning rate, weight decay and so on are those of `options`, which may have changed since. Where the number of
    ranks did, the state is cut up anew in `scratch`, which all ranks must see and which is removed afterwards; a rank
    that is new then goes on with the random numbers that it began with.

    Raises:
        CheckpointError: it is of another model, or cannot be read with these settings.
    """
    try:
        saved = StateDescription.from_json((directory / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / FILE_NAME} cannot be read: {error}") from error
    learner = options.learner
    in_the_way = obstacle(saved, options.dtype, learner.zero_stage) or other_model(
        saved, describe(engine, options)
    )
    if in_the_way is not None:
        raise CheckpointError(f"{directory}: cannot go on from this checkpoint: {in_the_way}")
    if resizing(saved, learner.ranks, learner.zero_stage):
        load_resized(engine, directory / _TAG, scratch)
    else:
        path, _ = engine.load_checkpoint(str(directory), tag=_TAG, load_module_strict=not _has_frozen(engine))
        if path is None:
            raise CheckpointError(f"{directory}: DeepSpeed found no training state")
    _apply_settings(engine, options)
    if (file := _random_file(directory, engine.global_rank)).exists():
        load_random_state(file)


def describe(engine: DeepSpeedEngine, options: LearnerOptions) -> StateDescription:
    """What a rank's engine holds, and how it is cut up."""
    model = engine.module.model
    shapes = {
        name: tuple(getattr(parameter, "ds_shape", parameter.shape))  # whole, also under ZeRO 3
        for name, parameter in model.named_parameters()
    }
    return StateDescription(
        architecture=type(model).__name__,
        dtype=options.dtype,
        ranks=options.learner.ranks,
        zero_stage=options.learner.zero_stage,
        shapes=shapes,
    )


def _apply_settings(engine: DeepSpeedEngine, options: LearnerOptions) -> None:
    """A checkpoint holds these settings too, and loading it brought the old ones back."""
    learner = options.learner
    schedule: Any = engine.lr_scheduler
    schedule.base_lrs = [learner.learning_rate] * len(schedule.base_lrs)
    rates = [
        base * share(schedule.last_epoch)
        for base, share in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    schedule._last_lr = rates
    for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
        group |= {
            "lr": rate,
            "initial_lr": learner.learning_rate,
            "betas": (learner.adam_beta1, learner.adam_beta2),
            "weight_decay": learner.weight_decay,
        }
    if hasattr(engine.optimizer, "clip_grad"):
        engine.optimizer.clip_grad = learner.max_grad_norm


def _has_frozen(engine: DeepSpeedEngine) -> bool:
    """Whether adapters alone are trained. The rest is what the model's own files say, and is not saved."""
    return not all(parameter.requires_grad for parameter in engine.module.parameters())


def _random_file(directory: Path, rank: int) -> Path:
    return directory / "random" / f"rank_{rank}.pt"


def _writer(file: Path) -> int:
    """The rank that wrote a file, by its name, as DeepSpeed's are too; rank 0 writes those without one."""
    named = re.search(r"rank_(\d+)", file.name)
    return int(named[1]) if named else 0
