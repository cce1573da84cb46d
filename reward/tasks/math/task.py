"""GSM8K- and MATH-like data: the answers are compared by `math-verify`, which computes with sympy.

Sympy hangs on what models write (`9^{9^{9}}`), and takes memory without end. That is the sandbox's business, so
`math-verify`'s own time-outs, which need signals, are off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from pydantic import Field

from cluster.core.types import Verdict
from reward.dataset.options import DatasetOptions
from reward.dataset.rows import DatasetProblems
from reward.task import Example, Sample
from reward.tasks.math.answers import last_answer, reference_answer
from reward.tasks.math.values import all_finite

MAX_ANSWER_CHARACTERS = 1000


class MathOptions(DatasetOptions):
    """Your prompts, and where their answers are."""

    prompt_field: str = Field(default="question", description="`problem` in MATH.")
    answer_field: str = "answer"
    """The reference: what follows `####` in it, or its last box, or all of it. `solution` in MATH."""
    instruction: str | None = "Reason step by step, and put your final answer within \\boxed{}."


class MathTask(DatasetProblems):
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
        """Raises ImportError without math-verify, which takes a second to import."""
        self._read = lru_cache(maxsize=4096)(_reader())

    def verify(self, problem: Any, response: str) -> Verdict:
        """Raises ValueError where the reference cannot be read."""
        from math_verify import verify

        assert self._read is not None, "load_verifier comes first"
        reference = reference_answer(str(problem[self._answer_field]))
        if not reference or not (expected := self._read(reference)):
            raise ValueError(f"the reference {reference!r:.100} is no mathematics that can be read")
        answer = last_answer(response)
        if answer is None:
            return Verdict("incorrect", 0.0, None, "no \\boxed{…}, and no ####")
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

    # It warns that nothing ends what hangs. The sandbox does.
    for module in ("parser", "grader"):
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)

    def read(answer: str) -> Any:
        return parse(f"\\boxed{{{answer}}}", parsing_timeout=None, raise_on_error=True)

    return read


TASK = MathTask
