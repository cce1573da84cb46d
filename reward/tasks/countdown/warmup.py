"""Supervised examples that teach a starter model the form of a Countdown response, not how to solve one.

A response is up to `max_tries` expressions with their (right) values, one a line, then an answer:

    3+5+7=15
    3*5+7=22
    <answer>3*5+7</answer>

Only `correct_fraction` of the expressions are aimed at the target; the others are any expression of the numbers.
The answer repeats the last try in `repeat_fraction` of the responses that have one, whether it hit or not.
So tries are reliable arithmetic and the model has seen answers that use them, but knowing when to stop trying and
what to answer is left for reinforcement learning to find. The number of tries, and with it the length, varies.
"""

import random
from collections.abc import Sequence

from reward.tasks.countdown.prompts import compact_prompt
from reward.tasks.countdown.puzzles import Puzzle, split_of
from reward.tasks.countdown.solver import expressions


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
    """`count` pairs of a compact prompt and a response to it, drawn from `puzzles` with repetition.

    Raises ValueError if there is no puzzle, if one of them belongs to the held-out split, or if a share is none.
    """
    for name, share in (("correct_fraction", correct_fraction), ("repeat_fraction", repeat_fraction)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {share}")
    if not puzzles:
        raise ValueError("warm-up examples need at least one puzzle")
    leaked = [puzzle.key for puzzle in puzzles if split_of(puzzle, eval_fraction) == "eval"]
    if leaked:
        raise ValueError(f"{len(leaked)} puzzles belong to the held-out split, the first is {leaked[0]}")

    rng = random.Random(f"countdown warm-up {seed}")
    examples = []
    for _ in range(count):
        puzzle = rng.choice(puzzles)
        writer = _Writer(puzzle, correct_fraction, rng)
        tries = [writer.expression() for _ in range(rng.randint(0, max_tries))]
        answer = tries[-1] if tries and rng.random() < repeat_fraction else writer.expression()
        trace = "".join(f"{text}={writer.value(text)}\n" for text in tries)
        examples.append((compact_prompt(puzzle), f"{trace}<answer>{answer}</answer>"))
    return examples


class _Writer:
    """Writes expressions of a puzzle's numbers whose value is whole, as the traces print values in digits."""

    def __init__(self, puzzle: Puzzle, correct_fraction: float, rng: random.Random) -> None:
        self._values = {
            text: value for text, value in expressions(puzzle.numbers).items() if value.denominator == 1
        }
        self._all = list(self._values)
        self._right = [text for text, value in self._values.items() if value == puzzle.target]
        self._right_share = correct_fraction
        self._rng = rng

    def expression(self) -> str:
        right = self._right and self._rng.random() < self._right_share
        return self._rng.choice(self._right if right else self._all)

    def value(self, text: str) -> int:
        return int(self._values[text])
