"""What can be known to be wrong with the learner's settings before anything starts. Torch-free; part of
`cluster/configuration/preflight.py`."""

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
    """Settings that contradict each other."""
    learner = config.learner
    least = {"none": 0, "optimizer": 2, "parameters": 3}[learner.offload]
    if learner.zero_stage < least:
        yield Problem(
            "learner.offload",
            f"{learner.offload} cannot be offloaded under learner.zero_stage = {learner.zero_stage}",
            f"set learner.zero_stage to {' or '.join(map(str, range(least, 4)))}, or offload to none",
        )
    steps = config.steps * learner.mini_batches
    if learner.warmup_steps >= steps:
        yield Problem(
            "learner.warmup_steps",
            f"the learning rate rises for {learner.warmup_steps} optimizer steps, and the run has only {steps} "
            "(steps × learner.mini_batches): it would never be reached",
            "lower it, or raise steps",
        )
    if learner.ranks > 1 and 0 < learner.gpus_per_rank < 1:
        yield Problem(
            "learner.gpus_per_rank",
            f"with {learner.gpus_per_rank:g} two ranks would share a GPU, which NCCL does not allow",
            "set it to 1, or learner.ranks to 1",
        )


def check_adapters(config: RunConfig) -> Iterator[Problem]:
    """As far as the model's files tell; the rest shows when the learner starts."""
    learner = config.learner
    if learner.lora_rank is None:
        for name in ("lora_alpha", "lora_target_modules"):
            if getattr(learner, name) != LearnerConfig.model_fields[name].default:
                yield Problem(
                    f"learner.{name}",
                    "it has no effect without learner.lora_rank",
                    "set that too, or leave it out",
                )
        return
    if importlib.util.find_spec("peft") is None:
        yield Problem("learner.lora_rank", "the Python package peft is not installed", "run: make setup")
    try:
        directory = ready_directory(config)
        shapes = checkpoint_shapes(directory) if directory else None
    except ValueError as error:  # what is not there at all is reported by check_model
        if Path(config.model.source).expanduser().is_dir():
            yield Problem("model.source", str(error), "fetch or save the model anew")
        return
    if shapes is not None:
        yield from _check_targets(config, shapes)


def _check_targets(config: RunConfig, shapes: dict[str, tuple[int, ...]]) -> Iterator[Problem]:
    if not shapes:
        yield Problem(
            "learner.lora_rank",
            f"{config.model.source} has no .safetensors files, to which the rollout workers would add the adapters",
            "load and save the model once with transformers (save_pretrained)",
        )
        return
    targets = config.learner.lora_target_modules
    if targets == ("all-linear",):
        return
    layers = matrix_layers(shapes)
    known = sorted({layer.rpartition(".")[2] for layer in layers}.difference(_NEVER_ADAPTED))
    wrong = [*unmatched(targets, layers), *(target for target in targets if target in _NEVER_ADAPTED)]
    if not targets:
        wrong = ["(none are named)"]
    if wrong:
        yield Problem(
            "learner.lora_target_modules",
            f"{config.model.source} has no linear layers {', '.join(dict.fromkeys(wrong))} to adapt",
            f"name some of {', '.join(known)}, or all-linear",
        )
