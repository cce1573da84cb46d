"""Data like GSM8K and MATH: `math-verify`, which computes with sympy, compares the answers.

Sympy hangs on some texts that models write (`9^{9^{9}}`), or uses ever more memory. The sandbox handles both, so the
timeouts of `math-verify` itself, which need signals, are off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from cluster.core.types import Verdict
from reward.dataset.rows import DatasetOptions, DatasetProblems
from reward.task import Example, Sample
from reward.tasks.math.answers import all_finite, last_answer, reference_answer

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
        self._read: Callable[[str], Any] | None = None

    def load_verifier(self) -> None:
        """Import math-verify, which takes a second.

        Raises:
            ImportError: if math-verify is not installed.
        """
        self._read = lru_cache(maxsize=4096)(_reader())

    def verify(self, problem: Any, response: str) -> Verdict:
        """Return the verdict on the answer in a response.

        Raises:
            ValueError: if the reference is not readable as mathematics.
        """
        from math_verify import verify

        assert self._read is not None, "call load_verifier first"
        reference = reference_answer(str(problem[self._answer_field]))
        if not reference or not (expected := self._read(reference)):
            raise ValueError(f"the reference {reference!r:.100} cannot be read as mathematics")
        answer = last_answer(response)
        if answer is None:
            return Verdict("incorrect", 0.0, None, "neither \\boxed{…} nor ####")
        if len(answer) > MAX_ANSWER_CHARACTERS:
            return Verdict("incorrect", 0.0, answer, f"longer than {MAX_ANSWER_CHARACTERS} characters")
        found = self._read(answer)
        if all_finite(expected) and not all_finite(found):
            return Verdict("incorrect", 0.0, answer, "its value is infinite or undefined")
        if verify(expected, found, timeout_seconds=None, raise_on_error=True):
            return Verdict("correct", 1.0, answer, "correct")
        return Verdict("incorrect", 0.0, answer, f"is not {reference}")


def _reader() -> Callable[[str], Any]:
    from math_verify import parse

    # math-verify warns that nothing ends a call that hangs; the sandbox does.
    for module in ("parser", "grader"):
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)

    def read(answer: str) -> Any:
        return parse(f"\\boxed{{{answer}}}", parsing_timeout=None, raise_on_error=True)

    return read


TASK = MathTask
