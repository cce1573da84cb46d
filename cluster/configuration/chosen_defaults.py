"""Choose the settings whose best value depends on the device or on the model, where the user has not set them. Pure.

A setting counts as set if the file or the command line names it, with whatever value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.configuration.device_checks import BFLOAT16_CAPABILITY
from cluster.configuration.machine import Machine
from cluster.configuration.memory_checks import SMALLEST_MICRO_BATCH, learner_fits, with_learner
from cluster.configuration.model_shape import ModelShape
from cluster.core.config import RunConfig


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting that was chosen, and the reason."""

    setting: str
    value: Any
    reason: str

    def __str__(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"{self.setting}={value} ({self.reason})"


def with_model_defaults(
    config: RunConfig, limit: int | None, reason: str
) -> tuple[RunConfig, tuple[Choice, ...]]:
    """Return the configuration with a context that the model supports, and the choices.

    Args:
        limit: The longest context of the model, or None if it is not known.
        reason: The end of a sentence about the limit, such as "the starter model supports".
    """
    model, rollout, choices = config.model, config.rollout, []
    if limit is None or limit >= model.max_context_tokens or "max_context_tokens" in model.model_fields_set:
        return config, ()
    choices.append(Choice("model.max_context_tokens", limit, f"all that {reason}"))
    if rollout.max_response_tokens >= limit and "max_response_tokens" not in rollout.model_fields_set:
        choices.append(Choice("rollout.max_response_tokens", limit // 2, "half of the context"))
        rollout = rollout.model_copy(update={"max_response_tokens": limit // 2})
    model = model.model_copy(update={"max_context_tokens": limit})
    return config.model_copy(update={"model": model, "rollout": rollout}), tuple(choices)


def with_device_defaults(
    config: RunConfig, shape: ModelShape | None, machine: Machine | None
) -> tuple[RunConfig, tuple[Choice, ...]]:
    """Return the configuration with the settings for its devices, and those that differ from the defaults on CPUs.

    Args:
        shape: The model's shape, or None if it is not known.
        machine: The GPUs of the run, or None if they are not known.
    """
    choices: list[Choice] = []
    on_gpus = config.learner.gpus_per_rank > 0 or config.rollout.gpus_per_worker > 0
    supports = machine is None or machine.capability is None or machine.capability >= BFLOAT16_CAPABILITY
    if on_gpus and supports and "dtype" not in config.model.model_fields_set:
        choices.append(Choice("model.dtype", "bfloat16", "the default on GPUs"))
        config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bfloat16"})})
    if config.learner.gpus_per_rank > 0:
        chosen, reason = _learner_settings(config, shape, machine)
        for name, value in chosen.items():
            if value != getattr(config.learner, name):
                choices.append(Choice(f"learner.{name}", value, reason))
        config = with_learner(config, **chosen)
    return config, tuple(choices)


def _learner_settings(
    config: RunConfig, shape: ModelShape | None, machine: Machine | None
) -> tuple[dict[str, Any], str]:
    """Return the first settings that fit into memory, from the fastest to the smallest, and the reason."""
    given = config.learner.model_fields_set
    candidates = [
        {
            name: value
            for name, value in (("gradient_checkpointing", checkpointing), ("micro_batch_tokens", tokens))
            if name not in given
        }
        for checkpointing, tokens in _candidates(config)
    ]
    if shape is None or machine is None:
        unknown = "model" if shape is None else "GPUs' memory"
        return candidates[1], f"the {unknown} is not known here"
    for chosen in candidates:
        if learner_fits(with_learner(config, **chosen), shape, machine.memory_gib):
            return chosen, f"so that a rank fits into {machine.memory_gib:.1f} GiB"
    return candidates[-1], f"a rank hardly fits into {machine.memory_gib:.1f} GiB"


def _candidates(config: RunConfig) -> list[tuple[bool, int]]:
    """Return values of gradient_checkpointing and micro_batch_tokens: without checkpointing first, then smaller and
    smaller micro-batches with it."""
    most = config.learner.micro_batch_tokens
    candidates = [(False, most), (True, most)]
    least = max(SMALLEST_MICRO_BATCH, config.model.max_context_tokens)
    while candidates[-1][1] > least:
        candidates.append((True, max(least, candidates[-1][1] // 2)))
    return candidates
