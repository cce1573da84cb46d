"""TeleLogs as a task: generated or published problems. The reward is 1 for the correct label, else 0."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated

from pydantic import Field

from cluster.core.schema import Count, Fraction, Integer, Section
from cluster.core.types import Split, Verdict
from reward.task import ChatMessages, Example
from reward.tasks.telelogs.causes import CAUSES
from reward.tasks.telelogs.generator import GeneratedProblems, GeneratorOptions, Style
from reward.tasks.telelogs.problem import Problem
from reward.tasks.telelogs.published import Loaded, load_problems
from reward.tasks.telelogs.starter import STARTER, warmup_examples
from reward.tasks.telelogs.verifier import verify

_WORDS = {cause.label: cause.word for cause in CAUSES}


class TeleLogsOptions(Section):
    """The choice of problems, and the style of their prompts."""

    data: str | None = None
    """The source of the problems: a file (JSONL, JSON, CSV, Parquet), a directory with a train and a test file, or a
    hub id such as netop/TeleLogs. null generates problems."""
    style: Style = "full"
    """The prompts of generated problems: `full` is as long as the published ones, `compact` is a few numbers without
    words for character-level models, `compact_chat` has the same numbers for small instruct models."""
    randomized_labels: bool = False
    """Shuffle the causes, keep five to eight of them, and print other labels."""
    train_problems: Count = 2400
    """The number of generated train problems. With `data` it is an upper limit."""
    eval_problems: Count = 864
    """The number of generated eval problems. With `data` it is an upper limit."""
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The fraction in the eval split: of the gNodeB IDs of generated problems, or of the questions in `data` without
    splits. A hash decides."""
    seed: Integer = 0
    """The seed of the generated problems and of the randomized labels."""
    starter_correct_fraction: Fraction | None = None
    """The fraction of the starter model's training examples that aim at the correct answer; null is 0.3."""
    starter_labels: Count | None = None
    """The number of labels, C1, C2, …, among which the other answers in these examples are random. The more there are,
    the rarer are correct responses at the start of a run. null takes the labels that the prompt offers."""


class TeleLogsTask:
    """The TeleLogs task."""

    Options = TeleLogsOptions
    starter = STARTER

    def __init__(self, options: TeleLogsOptions) -> None:
        self._options = options

    def problems(self, split: Split) -> Sequence[Problem]:
        options = self._options
        count = options.train_problems if split == "train" else options.eval_problems
        if options.data is None:
            generator_options = GeneratorOptions(
                split, options.style, options.randomized_labels, options.seed, options.eval_fraction
            )
            return GeneratedProblems(generator_options, count)
        return self._loaded.by_split[split][:count]

    @cached_property
    def _loaded(self) -> Loaded:
        options = self._options
        assert options.data is not None
        randomize_seed = options.seed if options.randomized_labels else None
        return load_problems(options.data, options.eval_fraction, randomize_seed)

    def notes(self) -> Sequence[str]:
        return () if self._options.data is None else self._loaded.notes

    def render(self, problem: Problem) -> str | ChatMessages:
        if self._options.data is None and self._options.style == "compact":
            return problem.question
        return [{"role": "user", "content": problem.question}]

    def category(self, problem: Problem) -> str:
        """Return the cause."""
        return f"{problem.cause} {_WORDS[problem.cause]}"

    def verify(self, problem: Problem, response: str) -> Verdict:
        result = verify(response, problem.labels, problem.answer)
        return Verdict(
            outcome="correct" if result.correct else "incorrect",
            reward=float(result.correct),
            answer=result.answer,
            reason=result.reason,
        )

    def solution(self, problem: Problem) -> str:
        return f"\\boxed{{{problem.answer}}}"

    def example(self, problem: Problem) -> Example:
        incorrect = next(label for label in problem.labels if label != problem.answer)
        return Example(correct=self.solution(problem), incorrect=f"\\boxed{{{incorrect}}}")

    def starter_examples(self) -> list[tuple[str, str]]:
        recipe, fraction = self.starter.recipe, self._options.starter_correct_fraction
        return warmup_examples(
            self.problems("train"),
            recipe.examples,
            recipe.seed,
            correct_fraction=recipe.correct_fraction if fraction is None else fraction,
            labels=self._options.starter_labels,
        )


TASK = TeleLogsTask
