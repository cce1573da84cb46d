"""Check the rescue of prompts whose responses are all incorrect: each setting has an effect, and what it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cluster.configuration.example_prompts import Rendered, SolvedExamples, obstacle, solver_of
from cluster.core.config import RunConfig
from cluster.core.problem import Problem
from reward.task import Task


def check_rescue(config: RunConfig) -> Iterator[Problem]:
    """Report replays without a limit of their importance weights, and settings of examples without any examples. A
    setting that has its default value is treated like one that is left out."""
    rescue, defaults = config.rescue, type(config.rescue)()
    if rescue.replay_max_age_steps and config.objective.importance_cap is None:
        yield Problem(
            "rescue.replay_max_age_steps",
            "a replay was sampled with older weights, and nothing corrects for that without objective.importance_cap",
            "set objective.importance_cap (such as 2.0), or leave it out",
        )
    for name in ("examples_fraction", "examples_fade_steps"):
        if rescue.examples == 0 and getattr(rescue, name) != getattr(defaults, name):
            yield Problem(
                f"rescue.{name}", "it has no effect without rescue.examples", "leave it out, or set both"
            )
    if rescue.examples and rescue.examples_fraction == 0:
        yield Problem(
            "rescue.examples",
            "no prompt has examples with rescue.examples_fraction = 0",
            "leave it out, or raise rescue.examples_fraction",
        )


def check_examples(
    config: RunConfig, task: Task, problems: Sequence[Any], tokens: Callable[[Rendered], int] | None
) -> Iterator[Problem]:
    """Report a task that cannot solve its problems, and examples with which no prompt fits into the context.

    Args:
        problems: the problems of the train split.
        tokens: returns the number of tokens of a prompt; None if the model must be downloaded first.
    """
    count = config.rescue.examples
    if count == 0:
        return
    solve = solver_of(task)
    if solve is None:
        yield Problem(
            "rescue.examples",
            f"the task {config.task.name} has neither a solver nor references from which to make solved examples",
            "leave it out, or choose another task",
        )
        return
    examples = SolvedExamples(task, solve, problems, count, config.seed)
    limit = config.model.max_context_tokens - config.rollout.max_response_tokens
    if reason := obstacle(examples, tokens or (lambda prompt: 0), limit):
        yield Problem(
            "rescue.examples", reason, "lower it, raise model.max_context_tokens, or change task.options"
        )
