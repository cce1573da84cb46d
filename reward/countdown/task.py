"""Countdown as a task: seeded solvable puzzles, split by key, reward 1 for a right answer and 0 for any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.contracts import Verdict
from reward.countdown.prompts import chat_prompt, compact_prompt
from reward.countdown.puzzles import Puzzle, generate_puzzles, in_several_orders
from reward.countdown.solver import solutions
from reward.countdown.verifier import verify
from reward.task import ChatMessages, Example, Split


class CountdownOptions(BaseModel):
    """Which puzzles, and how they are put to the model."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    style: Literal["compact", "chat"] = "compact"
    """`compact` is `3 5 7 = 38` for the starter model, `chat` an instruction for instruct models."""
    numbers: Annotated[int, Field(ge=2, le=6)] = 3
    """How many numbers a puzzle has."""
    number_min: Annotated[int, Field(ge=0)] = 1
    number_max: Annotated[int, Field(ge=1)] = 9
    target_min: int = 1
    target_max: int = 100
    train_puzzles: Annotated[int, Field(ge=1)] | None = None
    """How many to train on; null takes all there are."""
    orders_per_puzzle: Annotated[int, Field(ge=1)] = 1
    """In how many orders of its numbers each training puzzle is asked. More of them are harder to learn by heart."""
    held_out_puzzles: Annotated[int, Field(ge=1)] | None = None
    held_out_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """A puzzle is held out by the hash of its sorted numbers and target, whatever the seed."""
    seed: int = 0
    """Of the choice among the puzzles there are."""


class CountdownTask:
    Options = CountdownOptions

    def __init__(self, options: CountdownOptions) -> None:
        self._options = options

    def problems(self, split: Split) -> Sequence[Puzzle]:
        options = self._options
        puzzles = generate_puzzles(
            split,
            options.train_puzzles if split == "train" else options.held_out_puzzles,
            options.seed,
            numbers=options.numbers,
            number_min=options.number_min,
            number_max=options.number_max,
            target_min=options.target_min,
            target_max=options.target_max,
            held_out_share=options.held_out_share,
        )
        if split == "held_out":
            return puzzles
        return in_several_orders(puzzles, options.orders_per_puzzle, options.seed)

    def render(self, problem: Puzzle) -> str | ChatMessages:
        return compact_prompt(problem) if self._options.style == "compact" else chat_prompt(problem)

    def verify(self, problem: Puzzle, response: str) -> Verdict:
        result = verify(response, problem)
        return Verdict(
            outcome="right" if result.correct else "wrong",
            reward=float(result.correct),
            answer=result.answer,
            reason=result.reason,
        )

    def example(self, problem: Puzzle) -> Example:
        in_a_row = "+".join(map(str, problem.numbers))  # wrong unless the target is the sum
        wrong = in_a_row if sum(problem.numbers) != problem.target else f"{in_a_row}+1"
        right = solutions(problem.numbers, problem.target)[0]
        return Example(right=f"<answer>{right}</answer>", wrong=f"<answer>{wrong}</answer>")
