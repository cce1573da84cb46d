"""Seeded, solvable Countdown puzzles, cut into a train and a held-out split that cannot overlap."""

import functools
import hashlib
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from reward.task import STREAMS
from reward.tasks.countdown.solver import reachable_values, value_of_random_expression

Split = Literal["train", "eval"]
Difficulty = Literal["easy", "medium", "hard"]

# Up to this many sets of numbers the whole space is listed (under a second); above, it is sampled.
MAX_LISTED_SETS = 2000
# A sampled space is given up after this many draws in a row that brought nothing new (a few seconds).
MAX_FRUITLESS_DRAWS = 200_000


@dataclass(frozen=True)
class Puzzle:
    """Reach `target` with each of `numbers` used once. ValueError without numbers or with a negative one."""

    numbers: tuple[int, ...]
    target: int

    def __post_init__(self) -> None:
        # There is no unary minus, so a negative number could not be written down.
        if not self.numbers or min(self.numbers) < 0:
            raise ValueError(f"a puzzle needs numbers, none of them negative; got {self.numbers}")

    @property
    def key(self) -> str:
        """What makes two puzzles the same one: the sorted numbers and the target, as `3 5 7 = 38`."""
        return " ".join(map(str, sorted(self.numbers))) + f" = {self.target}"


def split_of(puzzle: Puzzle, eval_fraction: float = 0.1) -> Split:
    """The split a puzzle belongs to: decided by its key alone, the same in every process, for every seed."""
    digest = hashlib.sha256(puzzle.key.encode()).digest()
    return "eval" if int.from_bytes(digest[:8], "big") < eval_fraction * 2**64 else "train"


def difficulty_of(puzzle: Puzzle) -> Difficulty:
    """Which operators it takes (ours): `easy` has a solution with + and - alone, `medium` one with × too, `hard` none
    without ÷."""
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
    """`count` different solvable puzzles; `seed` decides which, their order and that of their numbers.

    A space of at most `MAX_LISTED_SETS` sets of numbers is listed whole, every puzzle is equally likely, and
    `count=None` asks for all of it. A larger one is sampled through random expressions, so that there
    puzzles with many solutions are likelier.

    Raises ValueError if the arguments make no sense or if the split has fewer than `count` puzzles.
    """
    _refuse_nonsense(split, count, numbers, number_min, number_max, target_min, target_max, eval_fraction)
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
            f"give a count (train_puzzles, eval_puzzles): {sets_of_numbers} sets of numbers are too many to list"
        )
    else:
        found = _sample(span, numbers, count, wanted, rng)
        available = f"only {len(found)} were found ({MAX_FRUITLESS_DRAWS} draws in a row brought nothing new)"

    if count is not None and len(found) < count:
        raise ValueError(
            f"{count} {split} puzzles asked for, but {available}: "
            "widen the numbers or the targets, or ask for fewer"
        )
    return [Puzzle(tuple(rng.sample(puzzle.numbers, numbers)), puzzle.target) for puzzle in found[:count]]


def in_several_orders(puzzles: Sequence[Puzzle], orders: int, seed: int) -> list[Puzzle]:
    """Each puzzle with its numbers in `orders` different orders, or as many as it has, one puzzle after the other.

    They have the same key, so they are in the same split. To a language model they are different prompts.
    """
    rng = random.Random(f"countdown orders {seed}")
    reordered = []
    for puzzle in puzzles:
        possible = sorted(set(itertools.permutations(puzzle.numbers)))
        chosen = rng.sample(possible, min(orders, len(possible)))
        reordered += [Puzzle(numbers, puzzle.target) for numbers in chosen]
    return reordered


@functools.lru_cache(maxsize=2)  # both splits are cut from the same list
def _list_all(span: range, targets: range, numbers: int) -> tuple[Puzzle, ...]:
    """Every puzzle over these numbers and targets, in a fixed order."""
    sets = itertools.combinations_with_replacement(span, numbers)
    return tuple(
        Puzzle(drawn, int(value))
        for drawn in sets
        for value in sorted(value for value in reachable_values(drawn) if value in targets)
    )


def _sample(
    span: range, numbers: int, count: int, wanted: Callable[[Puzzle], bool], rng: random.Random
) -> list[Puzzle]:
    """Different wanted puzzles, until there are `count` or the draws bring nothing new."""
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


def _refuse_nonsense(
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
