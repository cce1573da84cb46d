"""Check the learner's settings: they are consistent, and the adapters fit the model. Torch-free."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from cluster.core.config import LearnerConfig, RunConfig
from cluster.core.problem import Problem
from cluster.models.source import ready_directory
from learner.model.model_files import checkpoint_shapes, matrix_layers, unmatched

_NEVER_ADAPTED = ("lm_head", "embed_tokens", "embed_out", "wte", "wpe", "embed_in")


def check_learner(config: RunConfig) -> Iterator[Problem]:
    """Report settings of the learner that contradict each other."""
    learner = config.learner
    least = {"none": 0, "optimizer": 2, "parameters": 3}[learner.offload]
    if learner.zero_stage < least:
        yield Problem(
            "learner.offload",
            f"{learner.offload} cannot be offloaded with learner.zero_stage = {learner.zero_stage}",
            f"set learner.zero_stage to {' or '.join(map(str, range(least, 4)))}, or learner.offload to none",
        )
    steps = config.steps * config.optimizer_steps_per_batch
    if learner.warmup_steps >= steps:
        yield Problem(
            "learner.warmup_steps",
            f"the warm-up takes {learner.warmup_steps} optimizer steps, but the run has only {steps} "
            "(steps × learner.mini_batches × learner.epochs_per_batch), so the learning rate never reaches its peak",
            "lower it, or raise steps",
        )


def check_adapters(config: RunConfig) -> Iterator[Problem]:
    """Report adapters that do not fit the model's files. The learner checks the rest when it starts."""
    learner = config.learner
    if learner.lora_rank is None:
        for name in ("lora_alpha", "lora_target_modules"):
            if getattr(learner, name) != LearnerConfig.model_fields[name].default:
                yield Problem(
                    f"learner.{name}",
                    "it has no effect without learner.lora_rank",
                    "leave it out, or set learner.lora_rank",
                )
        return
    if importlib.util.find_spec("peft") is None:
        yield Problem("learner.lora_rank", "the Python package peft is not installed", "run: make setup")
    try:
        directory = ready_directory(config)
        shapes = checkpoint_shapes(directory) if directory else None
    except ValueError as error:  # check_model reports a model that does not exist
        if Path(config.model.source).expanduser().is_dir():
            yield Problem("model.source", str(error), "download or save the model again")
        return
    if shapes is not None:
        yield from _check_targets(config, shapes)


def _check_targets(config: RunConfig, shapes: dict[str, tuple[int, ...]]) -> Iterator[Problem]:
    """Report target modules that are no linear layers of the model."""
    if not shapes:
        yield Problem(
            "learner.lora_rank",
            f"{config.model.source} has no .safetensors files, which the rollout workers need to add the adapters",
            "load and save the model once with transformers (save_pretrained)",
        )
        return
    targets = config.learner.lora_target_modules
    if targets == ("all-linear",):
        return
    layers = matrix_layers(shapes)
    known = sorted({layer.rpartition(".")[2] for layer in layers}.difference(_NEVER_ADAPTED))
    invalid = [*unmatched(targets, layers), *(target for target in targets if target in _NEVER_ADAPTED)]
    if not targets:
        invalid = ["(the list is empty)"]
    if invalid:
        yield Problem(
            "learner.lora_target_modules",
            f"{config.model.source} has no linear layers {', '.join(dict.fromkeys(invalid))} to adapt",
            f"choose from {', '.join(known)}, or set it to all-linear",
        )
