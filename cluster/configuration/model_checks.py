"""Check the model: its source exists, and it supports the context and the settings that depend on it. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.core.config import RunConfig
from cluster.core.problem import Problem
from cluster.core.reading import read_object
from cluster.models.published import PUBLISHED
from cluster.models.source import described_directory, locate
from cluster.models.starter import find_starter, starter_tasks
from learner.model.prefix_support import prefix_obstacle


def check_model(config: RunConfig, elsewhere: bool = False) -> Iterator[Problem]:
    """Report a model that does not exist.

    Args:
        elsewhere: True if the run is meant for another machine. Then this machine need not reach the hub for models
            that are known to exist.
    """
    try:
        if not (elsewhere and config.model.source in PUBLISHED):
            locate(config.model)
    except ValueError as error:
        yield Problem("model.source", str(error), "set it to a directory, a hub id, a .gguf file, or starter")
    if config.model.source == "starter" and find_starter(config.task.name) is None:
        known = ", ".join(starter_tasks())
        yield Problem(
            "model.source",
            f"the task {config.task.name} has no starter model (tasks that have one: {known})",
            "set model.source to another model",
        )


def check_context(config: RunConfig) -> Iterator[Problem]:
    """Report a context that is longer than the model supports."""
    limit, reason = context_limit(config)
    if limit is not None and config.model.max_context_tokens > limit:
        yield Problem(
            "model.max_context_tokens",
            f"{config.model.max_context_tokens} is more than the {limit} that {reason}",
            f"lower it to {limit}",
        )


def context_limit(config: RunConfig) -> tuple[int | None, str]:
    """Return the longest context of the model, which is None if it is not known, and the model that sets it."""
    if config.model.source == "starter":
        starter = find_starter(config.task.name)
        return (starter.recipe.max_tokens if starter else None), "the starter model supports"
    known = _model_configuration(config)
    limit = known.get("max_position_embeddings")
    scaled = "factor" in (known.get("rope_parameters") or known.get("rope_scaling") or {})
    if not isinstance(limit, int) or scaled:  # the length after scaling depends on the kind of scaling
        return None, ""
    return limit, f"{config.model.source} supports (max_position_embeddings in its config.json)"


def check_prefix_sharing(config: RunConfig) -> Iterator[Problem]:
    """Report prefix sharing if the model's configuration rules it out. The learner checks the rest when it starts."""
    if config.learner.prefix_sharing != "on" or config.model.source == "starter":
        return
    obstacle = prefix_obstacle(_model_configuration(config), config.model.max_context_tokens)
    if obstacle is not None:
        yield Problem(
            "learner.prefix_sharing",
            f"the responses of a group cannot share the computation of their prompt: {obstacle}",
            "set it to auto or off",
        )


def _model_configuration(config: RunConfig) -> dict[str, Any]:
    """Return the content of the model's config.json, or what is known of it without the file. It is empty if neither
    exists, or if the file is invalid."""
    try:
        directory = described_directory(config)
        if directory is None:
            return dict(PUBLISHED.get(config.model.source, {}))
        return read_object(directory / "config.json")
    except (OSError, ValueError):  # check_model reports a missing model; loading reports invalid JSON
        return {}
