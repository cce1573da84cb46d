"""Countdown puzzles: their prompts, their train and eval splits, which cannot overlap, and a seeded generator."""

import functools
import hashlib
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.core.types import Split
from reward.task import STREAMS
from reward.tasks.countdown.solver import reachable_values, value_of_random_expression

Difficulty = Literal["easy", "medium", "hard"]

# A space of up to this many sets of numbers is listed completely (in under a second); a larger one is sampled.
MAX_LISTED_SETS = 2000
# Sampling ends after this many draws in a row without a new puzzle (a few seconds).
MAX_FRUITLESS_DRAWS = 200_000

_INSTRUCTION = """\
Using the numbers {numbers}, write an arithmetic expression that equals {target}.
Use every number exactly once. You may use +, -, *, / and parentheses, and nothing else.
Think step by step, then give only the expression, without an equals sign, between <answer> and </answer>, \
for example <answer>(1 + 2) / 3</answer>."""


@dataclass(frozen=True)
class Puzzle:
    """A puzzle: reach `target` and use each of `numbers` exactly once.

    Raises:
        ValueError: if there are no numbers, or one of them is negative.
    """

    numbers: tuple[int, ...]
    target: int

    def __post_init__(self) -> None:
        # Answers have no unary minus, so a negative number could not be written.
        if not self.numbers or min(self.numbers) < 0:
            raise ValueError(f"a puzzle needs numbers, none of them negative; got {self.numbers}")

    @property
    def key(self) -> str:
        """The sorted numbers and the target, such as `3 5 7 = 38`. Puzzles with equal keys are the same puzzle."""
        return " ".join(map(str, sorted(self.numbers))) + f" = {self.target}"


def compact_prompt(puzzle: Puzzle) -> str:
    """Return the prompt for the character-level starter model: `3 5 7 = 38` and a line break."""
    return f"{' '.join(map(str, puzzle.numbers))} = {puzzle.target}\n"


def chat_prompt(puzzle: Puzzle) -> list[dict[str, str]]:
    """Return the prompt for instruct models: messages for the model's own chat template."""
    numbers = ", ".join(map(str, puzzle.numbers))
    return [{"role": "user", "content": _INSTRUCTION.format(numbers=numbers, target=puzzle.target)}]


def split_of(puzzle: Puzzle, eval_fraction: float = 0.1) -> Split:
    """Return the split of a puzzle. Its key alone decides, so the split is the same in every process and run."""
    digest = hashlib.sha256(puzzle.key.encode()).digest()
    return "eval" if int.from_bytes(digest[:8], "big") < eval_fraction * 2**64 else "train"


def difficulty_of(puzzle: Puzzle) -> Difficulty:
    """Return the difficulty by the operators of the simplest solution (a definition of this project).

    `easy` puzzles have a solution with + and - alone, `medium` ones need ×, `hard` ones need ÷.
    """
    if puzzle.target in reachable_values(puzzle.numbers, "+-"):
        return "easy"
    return "medium" if puzzle.target in reachable_values(puzzle.numbers, "+-*") else "hard"


def generate_puzzles(
    split: Split,
    count: int | None,
    seed: int,
    numbers: int = 3,
    number_min: int = 1,
    number_max: int = 9,
    target_min: int = 1,
    target_max: int = 100,
    eval_fraction: float = 0.1,
    difficulty: Difficulty | None = None,
) -> list[Puzzle]:
    """Return `count` different solvable puzzles. `seed` decides the choice, the order, and the order of the numbers.

    A space of at most `MAX_LISTED_SETS` sets of numbers is listed completely: every puzzle is equally likely, and
    `count=None` returns all of them. A larger space is sampled through random expressions, which makes puzzles with
    many solutions more likely.

    Raises:
        ValueError: if the arguments are invalid, or the split has fewer than `count` puzzles.
    """
    _validate(split, count, numbers, number_min, number_max, target_min, target_max, eval_fraction)
    rng = random.Random(f"countdown {STREAMS[split]} {seed}")
    span = range(number_min, number_max + 1)
    targets = range(target_min, target_max + 1)

    def wanted(puzzle: Puzzle) -> bool:
        return (
            puzzle.target in targets
            and split_of(puzzle, eval_fraction) == split
            and difficulty in (None, difficulty_of(puzzle))
        )

    sets_of_numbers = math.comb(len(span) + numbers - 1, numbers)
    if sets_of_numbers <= MAX_LISTED_SETS:
        found = [puzzle for puzzle in _list_all(span, targets, numbers) if wanted(puzzle)]
        rng.shuffle(found)
        available = f"there are only {len(found)}"
    elif count is None:
        raise ValueError(
            f"set task.options.train_puzzles and eval_puzzles: {sets_of_numbers} sets of numbers are too many to list"
        )
    else:
        found = _sample(span, numbers, count, wanted, rng)
        available = f"only {len(found)} were found ({MAX_FRUITLESS_DRAWS} draws in a row gave no new puzzle)"

    if count is not None and len(found) < count:
        raise ValueError(
            f"{count} {split} puzzles were requested, but {available}: "
            "widen the range of numbers or targets, or request fewer puzzles"
        )
    return [Puzzle(tuple(rng.sample(puzzle.numbers, numbers)), puzzle.target) for puzzle in found[:count]]


def in_several_orders(puzzles: Sequence[Puzzle], orders: int, seed: int) -> list[Puzzle]:
    """Return each puzzle with its numbers in `orders` different orders, or in all orders if there are fewer.

    These variants have the same key and so the same split, but they are different prompts to a language model.
    """
    rng = random.Random(f"countdown orders {seed}")
    reordered = []
    for puzzle in puzzles:
        possible = sorted(set(itertools.permutations(puzzle.numbers)))
        chosen = rng.sample(possible, min(orders, len(possible)))
        reordered += [Puzzle(numbers, puzzle.target) for numbers in chosen]
    return reordered


@functools.lru_cache(maxsize=2)  # both splits are filtered from the same list
def _list_all(span: range, targets: range, numbers: int) -> tuple[Puzzle, ...]:
    """Return every puzzle over these numbers and targets, in a fixed order."""
    sets = itertools.combinations_with_replacement(span, numbers)
    return tuple(
        Puzzle(drawn, int(value))
        for drawn in sets
        for value in sorted(value for value in reachable_values(drawn) if value in targets)
    )


def _sample(
    span: range, numbers: int, count: int, wanted: Callable[[Puzzle], bool], rng: random.Random
) -> list[Puzzle]:
    """Return different wanted puzzles: `count`, or fewer if the draws stop to give new ones."""
    found: dict[str, Puzzle] = {}
    fruitless = 0
    while len(found) < count and fruitless < MAX_FRUITLESS_DRAWS:
        fruitless += 1
        drawn = tuple(rng.choice(span) for _ in range(numbers))
        value = value_of_random_expression(drawn, rng)
        if value is not None and value.denominator == 1:
            puzzle = Puzzle(drawn, int(value))
            if puzzle.key not in found and wanted(puzzle):
                found[puzzle.key] = puzzle
                fruitless = 0
    return list(found.values())


def _validate(
    split: str,
    count: int | None,
    numbers: int,
    number_min: int,
    number_max: int,
    target_min: int,
    target_max: int,
    eval_fraction: float,
) -> None:
    if split not in ("train", "eval"):
        raise ValueError(f"split must be 'train' or 'eval', not {split!r}")
    if count is not None and count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    if numbers < 1 or not 0 <= number_min <= number_max or target_min > target_max:
        raise ValueError(
            "need numbers >= 1, 0 <= number_min <= number_max and target_min <= target_max; got "
            f"{numbers}, {number_min}, {number_max}, {target_min}, {target_max}"
        )
    if not 0 <= eval_fraction <= 1:
        raise ValueError(f"eval_fraction must lie in [0, 1], got {eval_fraction}")
