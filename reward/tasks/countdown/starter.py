"""The starter model of Countdown: its recipe, and supervised examples that show the form of a response.

A response is up to `max_tries` expressions with their (correct) values, one per line, then an answer:

    3+5+7=15
    3*5+7=22
    <answer>3*5+7</answer>

A fraction `correct_fraction` of the expressions aims at the target; the others are any expression of the numbers. In a
fraction `repeat_fraction` of the responses with attempts, the answer repeats the last attempt, whether it reached the
target or not. The attempts are therefore reliable arithmetic, and the model has seen answers that use them. When to
stop trying, and what to answer, is left to reinforcement learning. The number of attempts, and so the length, varies.
"""

import random
from collections.abc import Sequence

from reward.task import Starter, StarterRecipe
from reward.tasks.countdown.puzzles import Puzzle, compact_prompt, split_of
from reward.tasks.countdown.solver import expressions

# Every character of a compact prompt or a warm-up response to it, except the tags.
COMPACT_CHARACTERS = "0123456789+-*/()= \n"
ANSWER_TAGS = ("<answer>", "</answer>")
KEPT_EXPRESSIONS = 500_000
"""The largest number of expressions that are kept while examples are written. A puzzle has several examples, and with
four numbers it has thousands of expressions."""
STARTER = Starter(StarterRecipe(), COMPACT_CHARACTERS, ANSWER_TAGS)


def warmup_examples(
    puzzles: Sequence[Puzzle],
    count: int,
    seed: int,
    *,
    correct_fraction: float = 0.3,
    max_tries: int = 0,
    repeat_fraction: float = 0.5,
    eval_fraction: float = 0.1,
) -> list[tuple[str, str]]:
    """Return `count` pairs of a compact prompt and a response, drawn from `puzzles` with repetition.

    Raises:
        ValueError: if there is no puzzle, a puzzle belongs to the eval split, or a fraction is not in [0, 1].
    """
    for name, fraction in (("correct_fraction", correct_fraction), ("repeat_fraction", repeat_fraction)):
        if not 0 <= fraction <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {fraction}")
    if not puzzles:
        raise ValueError("warm-up examples need at least one puzzle")
    leaked = [puzzle.key for puzzle in puzzles if split_of(puzzle, eval_fraction) == "eval"]
    if leaked:
        raise ValueError(f"{len(leaked)} puzzles belong to the eval split, the first is {leaked[0]}")

    rng = random.Random(f"countdown warm-up {seed}")
    examples = []
    writers: dict[Puzzle, _Writer] = {}
    kept = 0
    for _ in range(count):
        puzzle = rng.choice(puzzles)
        writer = writers.get(puzzle) or _Writer(puzzle, correct_fraction, rng)
        if puzzle not in writers and kept + writer.size <= KEPT_EXPRESSIONS:
            writers[puzzle] = writer
            kept += writer.size
        tries = [writer.expression() for _ in range(rng.randint(0, max_tries))]
        answer = tries[-1] if tries and rng.random() < repeat_fraction else writer.expression()
        trace = "".join(f"{text}={writer.value(text)}\n" for text in tries)
        examples.append((compact_prompt(puzzle), f"{trace}<answer>{answer}</answer>"))
    return examples


class _Writer:
    """Writes expressions of a puzzle's numbers with whole values, since a trace shows values as digits."""

    def __init__(self, puzzle: Puzzle, correct_fraction: float, rng: random.Random) -> None:
        self._values = {
            text: value for text, value in expressions(puzzle.numbers).items() if value.denominator == 1
        }
        self._all = list(self._values)
        self._correct = [text for text, value in self._values.items() if value == puzzle.target]
        self._correct_fraction = correct_fraction
        self._rng = rng

    @property
    def size(self) -> int:
        """The number of expressions that this writer holds."""
        return len(self._all)

    def expression(self) -> str:
        correct = self._correct and self._rng.random() < self._correct_fraction
        return self._rng.choice(self._correct if correct else self._all)

    def value(self, text: str) -> int:
        return int(self._values[text])
