r"""Supervised examples that teach a starter model the form of an answer, not how to find the cause.

A response is `\boxed{C3}`. A fraction `correct_fraction` of the labels is correct; the rest are random labels of the
question.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from reward.tasks.telelogs.problem import Problem


def warmup_examples(
    problems: Sequence[Problem], count: int, seed: int, *, correct_fraction: float
) -> list[tuple[str, str]]:
    """`count` pairs of a question and a response to it, of as many problems as there are, one after the other.

    Raises:
        ValueError: there is no problem, or the share is none.
    """
    if not 0 <= correct_fraction <= 1:
        raise ValueError(f"correct_fraction must lie in [0, 1], got {correct_fraction}")
    if not problems:
        raise ValueError("warm-up examples need at least one problem")
    rng = random.Random(f"telelogs warm-up {seed}")
    listed = list(problems[:count])
    examples = []
    for i in range(count):
        problem = listed[i % len(listed)]
        label = problem.answer if rng.random() < correct_fraction else rng.choice(problem.labels)
        examples.append((problem.question, f"\\boxed{{{label}}}"))
    return examples
