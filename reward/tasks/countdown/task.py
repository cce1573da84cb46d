"""Countdown as a task: generated or published puzzles. The reward is 1 for a correct answer, else 0."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cluster.core.schema import Count, CountOrZero, Fraction, Integer, Section
from cluster.core.types import Split, Verdict
from reward.task import ChatMessages, Example
from reward.tasks.countdown.published import Published, read_puzzles
from reward.tasks.countdown.puzzles import (
    Difficulty,
    Puzzle,
    chat_prompt,
    compact_prompt,
    difficulty_of,
    generate_puzzles,
    in_several_orders,
    split_of,
)
from reward.tasks.countdown.solver import MAX_NUMBERS, solutions
from reward.tasks.countdown.starter import STARTER, warmup_examples
from reward.tasks.countdown.verifier import verify

MAX_SOLVED_NUMBERS = 4
"""The largest number of numbers for which a solution is looked for: with 5 it takes more than a second."""


class CountdownOptions(Section):
    """The choice of puzzles, and the style of their prompts."""

    data: str | None = None
    """The source of the puzzles, in rows with `target` and `nums`: a `.jsonl`, `.json` or `.parquet`
    file, a directory with such files, or a hub id such as Jiayi-Pan/Countdown-Tasks-3to4. null generates puzzles."""
    data_split: str = "train"
    """The split of a Hugging Face data set to read. Its rows are divided into train and eval."""
    style: Literal["compact", "chat"] = "compact"
    """`compact` prompts, such as `3 5 7 = 38`, are for the starter model; `chat` prompts are for instruct models."""
    numbers: Annotated[int, Field(ge=2, le=6)] | None = None
    """The number of numbers in a puzzle. null means 3 for generated puzzles, and any number in `data`."""
    difficulty: Difficulty | None = None
    """`easy` puzzles have a solution with + and - alone, `medium` ones need ×, `hard` ones need ÷. null takes all."""
    number_min: CountOrZero = 1
    """The smallest number in a generated puzzle."""
    number_max: Count = 9
    """The largest number in a generated puzzle."""
    target_min: Integer = 1
    """The smallest target of a generated puzzle."""
    target_max: Integer = 100
    """The largest target of a generated puzzle."""
    train_puzzles: Count | None = None
    """The number of train puzzles; null takes all. With `data` it is an upper limit."""
    orders_per_puzzle: Count = 1
    """The number of orders of its numbers in which each train puzzle appears. More orders are harder to memorize."""
    eval_puzzles: Count | None = None
    """The number of eval puzzles; null takes all. With `data` it is an upper limit."""
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The fraction of the puzzles in the eval split. The hash of the sorted numbers and the target decides the split,
    independently of the seed."""
    seed: Integer = 0
    """The seed of the choice of puzzles."""
    starter_correct_fraction: Fraction | None = None
    """The fraction of the expressions in the starter model's training examples that aim at the target; null is 0.3. The
    smaller it is, the rarer are correct responses at the start of a run."""
    starter_tries: CountOrZero | None = None
    """The largest number of attempts that the starter model's training examples show before the answer; null is 0. With
    some, the length of responses varies."""

    @model_validator(mode="after")
    def _ranges_need_the_generator(self) -> Self:
        ignored = {"number_min", "number_max", "target_min", "target_max"} & self.model_fields_set
        if self.data is not None and ignored:
            raise ValueError(
                f"{', '.join(sorted(ignored))}: these options select generated puzzles and do not apply to data"
            )
        return self


@functools.lru_cache(maxsize=2)  # both splits; a comparison checks many runs with the same puzzles
def _generated(split: Split, count: int | None, options: CountdownOptions) -> tuple[Puzzle, ...]:
    return tuple(
        generate_puzzles(
            split,
            count,
            options.seed,
            numbers=options.numbers or 3,
            number_min=options.number_min,
            number_max=options.number_max,
            target_min=options.target_min,
            target_max=options.target_max,
            eval_fraction=options.eval_fraction,
            difficulty=options.difficulty,
        )
    )


class CountdownTask:
    """The Countdown task."""

    Options = CountdownOptions
    starter = STARTER

    def __init__(self, options: CountdownOptions) -> None:
        self._options = options

    def problems(self, split: Split) -> Sequence[Puzzle]:
        options = self._options
        count = options.train_puzzles if split == "train" else options.eval_puzzles
        puzzles = _generated(split, count, options) if options.data is None else self._chosen(split, count)
        if split == "eval":
            return puzzles
        return in_several_orders(puzzles, options.orders_per_puzzle, options.seed)

    def _chosen(self, split: Split, count: int | None) -> list[Puzzle]:
        """Return the first `count` selected puzzles of the data, in an order that the seed decides."""
        options = self._options
        puzzles = [
            puzzle
            for puzzle in self._published.puzzles
            if split_of(puzzle, options.eval_fraction) == split
            and options.numbers in (None, len(puzzle.numbers))
        ]
        random.Random(f"countdown data {split} {options.seed}").shuffle(puzzles)
        selected = (p for p in puzzles if options.difficulty in (None, difficulty_of(p)))
        return list(itertools.islice(selected, count))

    @cached_property
    def _published(self) -> Published:
        assert self._options.data is not None
        return read_puzzles(self._options.data, self._options.data_split)

    def notes(self) -> Sequence[str]:
        return () if self._options.data is None else self._published.notes

    def category(self, problem: Puzzle) -> str:
        """Return the number of numbers and the difficulty."""
        count = len(problem.numbers)
        return f"{count} numbers, {difficulty_of(problem)}" if count <= MAX_NUMBERS else f"{count} numbers"

    def render(self, problem: Puzzle) -> str | ChatMessages:
        return compact_prompt(problem) if self._options.style == "compact" else chat_prompt(problem)

    def verify(self, problem: Puzzle, response: str) -> Verdict:
        result = verify(response, problem)
        return Verdict(
            outcome="correct" if result.correct else "incorrect",
            reward=float(result.correct),
            answer=result.answer,
            reason=result.reason,
        )

    def example(self, problem: Puzzle) -> Example:
        total = "+".join(map(str, problem.numbers))  # incorrect unless the target is the sum
        incorrect = total if sum(problem.numbers) != problem.target else f"{total}+1"
        correct = solutions(problem.numbers, problem.target)[0]
        return Example(correct=f"<answer>{correct}</answer>", incorrect=f"<answer>{incorrect}</answer>")

    def solution(self, problem: Puzzle) -> str | None:
        if len(problem.numbers) > MAX_SOLVED_NUMBERS:
            return None
        found = solutions(problem.numbers, problem.target)
        return f"<answer>{found[0]}</answer>" if found else None

    def starter_examples(self) -> list[tuple[str, str]]:
        recipe, options = self.starter.recipe, self._options
        fraction, tries = options.starter_correct_fraction, options.starter_tries
        return warmup_examples(
            self.problems("train"),
            recipe.examples,
            recipe.seed,
            correct_fraction=recipe.correct_fraction if fraction is None else fraction,
            max_tries=recipe.max_tries if tries is None else tries,
            repeat_fraction=recipe.repeat_fraction,
            eval_fraction=self._options.eval_fraction,
        )


TASK = CountdownTask
