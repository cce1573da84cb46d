"""Countdown as a task: seeded solvable puzzles, or those of a data set, split by key; reward 1 for a right answer and 0
for any other."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.core.types import Split, Verdict
from reward.task import ChatMessages, Example
from reward.tasks.countdown.prompts import chat_prompt, compact_prompt
from reward.tasks.countdown.published import Published, read_puzzles
from reward.tasks.countdown.puzzles import (
    Difficulty,
    Puzzle,
    difficulty_of,
    generate_puzzles,
    in_several_orders,
    split_of,
)
from reward.tasks.countdown.solver import MAX_NUMBERS, solutions
from reward.tasks.countdown.verifier import verify


class CountdownOptions(BaseModel):
    """Which puzzles, and how they are put to the model."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: str | None = None
    """null generates puzzles. Else where they are, in rows with `target` and `nums`: a `.jsonl` or `.parquet` file, a
    directory that `datasets` can load, or a hub id such as Jiayi-Pan/Countdown-Tasks-3to4."""
    data_split: str = "train"
    """Of a Hugging Face data set, whose rows are then cut into ours."""
    style: Literal["compact", "chat"] = "compact"
    """`compact` is `3 5 7 = 38` for the starter model, `chat` an instruction for instruct models."""
    numbers: Annotated[int, Field(ge=2, le=6)] | None = None
    """How many numbers a puzzle has: 3 where puzzles are generated, any number in `data`."""
    difficulty: Difficulty | None = None
    """`easy` puzzles have a solution with + and - alone, `medium` ones with × too, `hard` ones none without ÷. null
    takes all."""
    number_min: Annotated[int, Field(ge=0)] = 1
    number_max: Annotated[int, Field(ge=1)] = 9
    target_min: int = 1
    target_max: int = 100
    train_puzzles: Annotated[int, Field(ge=1)] | None = None
    """How many to train on; null takes all there are. Of `data`, at most so many are taken."""
    orders_per_puzzle: Annotated[int, Field(ge=1)] = 1
    """In how many orders of its numbers each training puzzle is asked. More of them are harder to learn by heart."""
    eval_puzzles: Annotated[int, Field(ge=1)] | None = None
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """A puzzle is held out by the hash of its sorted numbers and target, whatever the seed."""
    seed: int = 0
    """Of the choice among the puzzles there are."""

    @model_validator(mode="after")
    def _ranges_are_the_generators(self) -> Self:
        unheeded = {"number_min", "number_max", "target_min", "target_max"} & self.model_fields_set
        if self.data is not None and unheeded:
            raise ValueError(
                f"{', '.join(sorted(unheeded))}: they are of generated puzzles, not of those in data"
            )
        return self


class CountdownTask:
    Options = CountdownOptions

    def __init__(self, options: CountdownOptions) -> None:
        self._options = options

    def problems(self, split: Split) -> Sequence[Puzzle]:
        options = self._options
        count = options.train_puzzles if split == "train" else options.eval_puzzles
        puzzles = self._generated(split, count) if options.data is None else self._chosen(split, count)
        if split == "eval":
            return puzzles
        return in_several_orders(puzzles, options.orders_per_puzzle, options.seed)

    def _generated(self, split: Split, count: int | None) -> list[Puzzle]:
        options = self._options
        return generate_puzzles(
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

    def _chosen(self, split: Split, count: int | None) -> list[Puzzle]:
        """The first `count` of the data's puzzles that are wanted, in an order that the seed decides."""
        options = self._options
        puzzles = [
            puzzle
            for puzzle in self._published.puzzles
            if split_of(puzzle, options.eval_fraction) == split
            and options.numbers in (None, len(puzzle.numbers))
        ]
        random.Random(f"countdown data {split} {options.seed}").shuffle(puzzles)
        wanted = (p for p in puzzles if options.difficulty in (None, difficulty_of(p)))
        return list(itertools.islice(wanted, count))

    @cached_property
    def _published(self) -> Published:
        assert self._options.data is not None
        return read_puzzles(self._options.data, self._options.data_split)

    def notes(self) -> Sequence[str]:
        return () if self._options.data is None else self._published.notes

    def category(self, problem: Puzzle) -> str:
        """How many numbers, and how difficult."""
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
        in_a_row = "+".join(map(str, problem.numbers))  # wrong unless the target is the sum
        wrong = in_a_row if sum(problem.numbers) != problem.target else f"{in_a_row}+1"
        right = solutions(problem.numbers, problem.target)[0]
        return Example(correct=f"<answer>{right}</answer>", incorrect=f"<answer>{wrong}</answer>")


TASK = CountdownTask
