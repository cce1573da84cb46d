"""Save and load a rank's part of a checkpoint.

learner/
    description.json        the model and its partitioning (learner/state/state_description.py)
    state/                  DeepSpeed's files: weights, optimizer and learning-rate schedule
    random/rank_0.pt        the random number generators of each rank

A state that another number of ranks wrote is partitioned again through DeepSpeed's universal checkpoints.
"""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cluster.core.actor_options import LearnerOptions
from cluster.core.files import write_atomically
from learner.state.state_description import FILE_NAME, StateDescription, obstacle, other_model, resizing
from learner.state.state_files import CheckpointError, CheckpointWriteError, FileRecord, seal, why_not_written

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


_TAG = "state"


def save_training_state(
    engine: DeepSpeedEngine, directory: Path, options: LearnerOptions
) -> dict[Path, FileRecord]:
    """Write this rank's part of the training state under `directory`, and wait until it is on disk. A collective.

    Returns the files that this rank wrote. The caller marks the checkpoint complete (DeepSpeed writes its own `latest`
    file too early for that).

    Raises:
        CheckpointWriteError: if a file cannot be written. The other ranks may then wait for this one in a collective.
    """
    rank = engine.global_rank
    try:
        engine.save_checkpoint(
            str(directory), tag=_TAG, save_latest=False, exclude_frozen_parameters=_has_frozen(engine)
        )
        (directory / "random").mkdir(exist_ok=True)
        save_random_state(_random_file(directory, rank))
        if rank == 0:
            write_atomically(directory / FILE_NAME, describe(engine, options).to_json())
        return {file: seal(file) for file in directory.rglob("*") if file.is_file() and _writer(file) == rank}
    except (OSError, RuntimeError) as error:  # torch.save says RuntimeError on a full disk
        if (why := why_not_written(error, directory)) is None:
            raise
        raise CheckpointWriteError(f"{directory}: {why}") from error


def load_training_state(
    engine: DeepSpeedEngine, directory: Path, options: LearnerOptions, scratch: Path
) -> None:
    """Restore the state that `save_training_state` wrote, with any number of ranks. A collective.

    Learning rate, weight decay and the other optimizer settings come from `options`, which may have changed since. If
    the number of ranks has changed, the state is partitioned again in `scratch`, a directory that all ranks must see
    and that is removed afterwards. A rank without a saved random state keeps its initial one.

    Raises:
        CheckpointError: if the state belongs to another model, or cannot be read with these settings.
    """
    saved = StateDescription.read(directory)
    learner = options.learner
    obstacle_found = obstacle(saved, options.dtype, learner.zero_stage) or other_model(
        saved, describe(engine, options)
    )
    if obstacle_found is not None:
        raise CheckpointError(f"{directory}: cannot resume from this checkpoint: {obstacle_found}")
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
    """Describe the model in a rank's engine, and its partitioning."""
    model: Any = engine.module.model
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
    """Apply the optimizer settings of `options` again: loading a checkpoint has restored the saved ones."""
    learner = options.learner
    schedule: Any = engine.lr_scheduler
    schedule.base_lrs = [learner.learning_rate] * len(schedule.base_lrs)
    rates = [
        base * factor(schedule.last_epoch)
        for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
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
    """Return True if only adapters are trained. The frozen weights are those of the model's own files, and are not
    saved."""
    return not all(parameter.requires_grad for parameter in engine.module.parameters())


def _random_file(directory: Path, rank: int) -> Path:
    return directory / "random" / f"rank_{rank}.pt"


def _writer(file: Path) -> int:
    """Return the rank that wrote a file, according to its name (DeepSpeed's files have ranks in their names too). Files
    without a rank in their name are written by rank 0."""
    named = re.search(r"rank_(\d+)", file.name)
    return int(named[1]) if named else 0


# --- Random number generators.


def save_random_state(file: Path) -> None:
    """Save the state of the random number generators of Python, NumPy, torch and the process's GPUs.

    Raises:
        OSError, RuntimeError: if the file cannot be written.
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
    """Replace the array in NumPy's state by a tensor: `torch.load` with `weights_only` accepts no other objects."""
    generator, keys, *rest = state
    return generator, torch.from_numpy(keys.astype(np.int64)), *rest


def load_random_state(file: Path) -> None:
    """Continue the random numbers of the process that saved `file`. The generators of GPUs are restored only if their
    number is the same.

    Raises:
        pickle.UnpicklingError: if the file holds anything but numbers and tensors.
    """
    state = torch.load(file, map_location="cpu", weights_only=True)
    random.setstate(state["python"])
    generator, keys, *rest = state["numpy"]
    np.random.set_state((generator, keys.numpy(), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


# --- Another number of ranks.


def load_resized(engine: DeepSpeedEngine, state: Path, scratch: Path) -> None:
    """Load the ZeRO state in directory `state`, whatever the number of ranks that wrote it. A collective.

    Rank 0 assembles it in `scratch`, parameter by parameter, and each rank reads its part from there. The state itself
    is not changed.

    Raises:
        CheckpointWriteError: if `scratch` cannot be written. The other ranks then wait for rank 0 in a collective.
    """
    from deepspeed import comm

    if comm.get_rank() == 0:
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            _convert(state, scratch / state.name)
        except (OSError, RuntimeError) as error:  # torch.save says RuntimeError on a full disk
            why = why_not_written(error, scratch)
            shutil.rmtree(scratch, ignore_errors=True)
            if why is None:
                raise
            raise CheckpointWriteError(
                f"{scratch}: {why}, while {state} was partitioned for a different number of ranks, which needs the "
                "same disk space again"
            ) from error
    comm.barrier()
    # DeepSpeed reads this flag only while it loads. An engine that was built with it could read no other checkpoints.
    engine._config.load_universal_checkpoint = True
    try:
        engine.load_checkpoint(str(scratch), tag=state.name)
    finally:
        engine._config.load_universal_checkpoint = False
    optimizer: Any = engine.optimizer
    place_steps(optimizer.optimizer)  # ZeRO's optimizer wraps torch's
    comm.barrier()
    if comm.get_rank() == 0:
        shutil.rmtree(scratch)


def place_steps(optimizer: torch.optim.Optimizer) -> None:
    """Give each parameter of `optimizer` a step count of its own on the parameter's device, as fused AdamW requires.

    Universal checkpoints are read onto the CPU, and DeepSpeed moves everything but the step count. With ZeRO 3 it also
    gives all parameters the same tensor, to which every one of them would add 1.
    """
    for parameter, state in optimizer.state.items():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].to(parameter.device, copy=True)


def _convert(state: Path, universal: Path) -> None:
    """Write the ZeRO state in `state` as a universal checkpoint."""
    from deepspeed.checkpoint.ds_to_universal import main as ds_to_universal

    universal.mkdir(parents=True)
    ds_to_universal(
        SimpleNamespace(
            input_folder=str(state),
            output_folder=str(universal),
            num_extract_workers=1,  # in this process: forking a process with threads and sockets is unsafe
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,  # the state of tensor parallelism, which we do not use
        )
    )
