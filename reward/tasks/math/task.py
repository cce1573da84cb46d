"""Data like GSM8K and MATH: the answers are compared by their values (`comparison.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.core.types import Verdict
from reward.dataset.rows import DatasetOptions, DatasetProblems
from reward.task import Example, Sample
from reward.tasks.math.answers import last_answer, reference_answer
from reward.tasks.math.comparison import equal
from reward.tasks.math.expressions import parse

MAX_ANSWER_CHARACTERS = 1000


class MathOptions(DatasetOptions):
    """The user's prompts, and the location of their answers."""

    prompt_field: str = "question"
    """The field with the prompt: text, or chat messages. It is `problem` in MATH."""
    answer_field: str = "answer"
    """The field with the reference: the text after its `####`, or in its last box, or all of it. It is `solution` in
    MATH."""
    instruction: str | None = "Reason step by step, and put your final answer within \\boxed{}."


class MathTask(DatasetProblems):
    """A task with mathematical problems from a data set, scored by the value of the answer."""

    Options = MathOptions
    sample = Sample(
        options={},
        problem={
            "question": "A train runs for three quarters of an hour at 80 km/h. How far does it get, in km?",
            "answer": "80 * 3 / 4 = 60\n#### 60",
        },
        example=Example(correct="It is $\\boxed{\\frac{240}{4}}$.", incorrect="It is $\\boxed{80}$."),
    )
    verifier_option = "answer_field"

    def __init__(self, options: MathOptions) -> None:
        super().__init__(options)
        self._answer_field = options.answer_field
        self.fields = (options.answer_field,)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Refuse a row whose reference is no answer.

        Raises:
            ValueError: if it is not; the message says what it is.
        """
        reference_answer(row[self._answer_field])

    def load_verifier(self) -> None:
        """Import the parser of LaTeX, which takes a second.

        Raises:
            ImportError: if it is not installed.
        """
        parse("1+1")

    def verify(self, problem: Any, response: str) -> Verdict:
        """Return the verdict on the answer in a response.

        Raises:
            ValueError: if the reference is not an answer.
        """
        reference = reference_answer(problem[self._answer_field])
        answer = last_answer(response)
        if answer is None:
            return Verdict("incorrect", 0.0, None, "neither \\boxed{…} nor ####")
        if len(answer) > MAX_ANSWER_CHARACTERS:
            return Verdict("incorrect", 0.0, answer, f"longer than {MAX_ANSWER_CHARACTERS} characters")
        if equal(reference, answer):
            return Verdict("correct", 1.0, answer, "correct")
        return Verdict("incorrect", 0.0, answer, f"is not {reference}")

    def solution(self, problem: Any) -> str:
        """Return the reference as a response: as it is if it marks its answer, and otherwise in a box.

        Raises:
            ValueError: if the reference is not an answer.
        """
        reference = problem[self._answer_field]
        if isinstance(reference, str) and last_answer(reference) is not None:
            return reference
        return f"\\boxed{{{reference_answer(reference)}}}"


TASK = MathTask
