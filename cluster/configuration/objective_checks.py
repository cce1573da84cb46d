"""Check the objective: it exists, and its settings have an effect and do not contradict each other. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cluster.configuration.messages import closest
from cluster.core.config import RunConfig
from cluster.core.problem import Problem
from learner.objective.objectives import OBJECTIVES, Objective

_LEAVE_OUT = "leave it out"


def check_objective(config: RunConfig) -> Iterator[Problem]:
    """Report an unknown objective and settings without an effect. A setting that has its default value is treated like
    one that is left out."""
    given = config.objective
    if given.name not in OBJECTIVES:
        yield _unknown_objective(given.name)
    else:
        yield from _check_unused_settings(config, OBJECTIVES[given.name])
    if given.kl_estimator is not None and not given.kl_coefficient:
        yield Problem(
            "objective.kl_estimator",
            "it has no effect without objective.kl_coefficient",
            f"{_LEAVE_OUT}, or set both",
        )
    if given.importance_level is not None and given.importance_cap is None:
        yield Problem(
            "objective.importance_level",
            "it has no effect without objective.importance_cap",
            f"{_LEAVE_OUT}, or set both",
        )
    if given.overlong_tokens > config.rollout.max_response_tokens:
        yield Problem(
            "objective.overlong_tokens",
            f"{given.overlong_tokens} is more than rollout.max_response_tokens = {config.rollout.max_response_tokens}: "
            "the penalty would begin before the response does",
            f"lower it to {config.rollout.max_response_tokens} or less",
        )


def _unknown_objective(name: str) -> Problem:
    """Return the problem of an objective that does not exist, with a similar name or all names."""
    known = f"known objectives: {', '.join(OBJECTIVES)}"
    near = closest(name, OBJECTIVES)
    return Problem(
        "objective.name",
        f"there is no objective {name!r}",
        f"did you mean {near}? ({known})" if near else f"choose one of the {known}",
    )


def _check_unused_settings(config: RunConfig, objective: Objective) -> Iterator[Problem]:
    """Report settings that the chosen objective does not use."""
    given = config.objective
    defaults = type(given)()
    for clip in ("clip_low", "clip_high"):
        if not objective.has_clip and getattr(given, clip) is not None:
            yield Problem(f"objective.{clip}", f"{given.name} has no clip", _LEAVE_OUT)
    if given.dual_clip is not None and objective.dual_clip is None:
        yield Problem(
            "objective.dual_clip",
            f"{given.name} has no dual clip",
            f"{_LEAVE_OUT}, or set name to {_names(lambda known: known.dual_clip is not None)}",
        )
    if given.alpha != defaults.alpha and not objective.uses_alpha:
        yield Problem(
            "objective.alpha",
            f"{given.name} does not use a fixed alpha",
            f"{_LEAVE_OUT}, or set name to {_names(lambda known: known.uses_alpha)}",
        )
    if given.alpha_min != defaults.alpha_min and not objective.uses_alpha_min:
        yield Problem(
            "objective.alpha_min",
            f"{given.name} does not adapt alpha",
            f"{_LEAVE_OUT}, or set name to {_names(lambda known: known.uses_alpha_min)}",
        )


def _names(uses: Callable[[Objective], bool]) -> str:
    """Return the names of the objectives that use a setting."""
    return " or ".join(name for name, objective in OBJECTIVES.items() if uses(objective))
