r"""The starter model of TeleLogs: its recipe, and supervised examples that show the form of an answer.

A response is `\boxed{C3}`. A fraction `correct_fraction` of the labels is correct; the others are random: labels of the
prompt, or of a longer list, most of which no prompt offers. So the model learns the form of an answer, but not how to
find the cause.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from reward.task import Starter, StarterRecipe
from reward.tasks.telelogs.problem import Problem

# Every character of a compact prompt, and the answer's tags.
COMPACT_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789- \n"
ANSWER_TAGS = ("\\boxed{", "}")
# The prompts are ten times as long as those of Countdown, and an answer is one label. A few steps teach the form only.
STARTER = Starter(
    StarterRecipe(examples=3_200, max_tokens=512, steps=100, batch_size=32), COMPACT_CHARACTERS, ANSWER_TAGS
)


def warmup_examples(
    problems: Sequence[Problem], count: int, seed: int, *, correct_fraction: float, labels: int | None = None
) -> list[tuple[str, str]]:
    """Return `count` pairs of a prompt and a response. The problems are used in turn.

    Args:
        labels: Random answers are one of C1 … C`labels`; None takes the labels of the prompt.

    Raises:
        ValueError: if there is no problem, or `correct_fraction` is not in [0, 1].
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
        guesses = problem.labels if labels is None else [f"C{number}" for number in range(1, labels + 1)]
        label = problem.answer if rng.random() < correct_fraction else rng.choice(guesses)
        examples.append((problem.question, f"\\boxed{{{label}}}"))
    return examples
