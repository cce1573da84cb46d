"""Settings of the loss that contradict each other, or that the chosen objective would not heed. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.core.config import RunConfig
from cluster.core.problem import Problem
from learner.objective.table import OBJECTIVES, adaptive, fixed

_LEAVE_OUT = "leave it out"


def check_objective(config: RunConfig) -> Iterator[Problem]:
    """No setting is given that would have no effect. One that has its default is as good as left out."""
    given = config.objective
    objective = OBJECTIVES[given.name]
    defaults = type(given)()
    for clip in ("clip_low", "clip_high"):
        if not objective.has_clip and getattr(given, clip) is not None:
            yield Problem(f"objective.{clip}", f"{given.name} has no clip", _LEAVE_OUT)
    if given.alpha != defaults.alpha and objective.alpha_rule is not fixed:
        yield Problem(
            "objective.alpha", f"{given.name} takes no fixed alpha", f"{_LEAVE_OUT}, or set name to hpo"
        )
    if given.alpha_min != defaults.alpha_min and objective.alpha_rule is not adaptive:
        yield Problem(
            "objective.alpha_min", f"{given.name} adapts no alpha", f"{_LEAVE_OUT}, or set name to a_hpo"
        )
    if given.kl_estimator is not None and not given.kl_coefficient:
        yield Problem(
            "objective.kl_estimator",
            "without objective.kl_coefficient nothing is estimated",
            f"{_LEAVE_OUT}, or set both",
        )
    if given.importance_level is not None and given.importance_cap is None:
        yield Problem(
            "objective.importance_level",
            "without objective.importance_cap there are no importance weights",
            f"{_LEAVE_OUT}, or set both",
        )
    if given.overlong_tokens > config.rollout.max_response_tokens:
        yield Problem(
            "objective.overlong_tokens",
            f"{given.overlong_tokens} is more than rollout.max_response_tokens = {config.rollout.max_response_tokens}: "
            "the penalty would begin before the response does",
            f"lower it to {config.rollout.max_response_tokens} or less",
        )
