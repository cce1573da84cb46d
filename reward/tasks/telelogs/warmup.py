r"""Supervised examples that teach a starter model the form of an answer, not how to find the cause.

A response is `\boxed{C3}`. Only `right_share` of the labels are aimed at; the others are any label of the question.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from reward.tasks.telelogs.problem import Problem


def warmup_examples(
    problems: Sequence[Problem], count: int, seed: int, *, right_share: float
) -> list[tuple[str, str]]:
    """`count` pairs of a question and a response to it, of as many problems as there are, one after the other.

    Raises:
        ValueError: there is no problem, or the share is none.
    """
    if not 0 <= right_share <= 1:
        raise ValueError(f"right_share must lie in [0, 1], got {right_share}")
    if not problems:
        raise ValueError("warm-up examples need at least one problem")
    rng = random.Random(f"telelogs warm-up {seed}")
    listed = list(problems[:count])
    examples = []
    for i in range(count):
        problem = listed[i % len(listed)]
        label = problem.answer if rng.random() < right_share else rng.choice(problem.labels)
        examples.append((problem.question, f"\\boxed{{{label}}}"))
    return examples
