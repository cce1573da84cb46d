"""What a starter model learns from: well-formed answers, of which as many are right as asked."""

from __future__ import annotations

import pytest

from reward.tasks.telelogs.generator import GeneratedProblems, GeneratorOptions
from reward.tasks.telelogs.starter import warmup_examples
from reward.tasks.telelogs.verifier import verify

PROBLEMS = list(GeneratedProblems(GeneratorOptions("train", "compact", randomized_labels=True), 40))


@pytest.mark.parametrize(("correct_fraction", "expected"), [(0.0, 0.16), (0.5, 0.58), (1.0, 1.0)])
def test_every_response_names_a_label_and_the_asked_share_is_right(
    correct_fraction: float, expected: float
) -> None:
    """A label drawn from five to eight is right by accident in one of six."""
    by_question = {problem.question: problem for problem in PROBLEMS}
    right = 0
    for question, response in warmup_examples(PROBLEMS, 2000, 0, correct_fraction=correct_fraction):
        problem = by_question[question]
        result = verify(response, problem.labels, problem.answer)
        assert result.answer in problem.labels
        right += result.correct
    assert right / 2000 == pytest.approx(expected, abs=0.04)


def test_the_seed_decides_them() -> None:
    def drawn(seed: int) -> list[tuple[str, str]]:
        return warmup_examples(PROBLEMS, 60, seed, correct_fraction=0.3)

    assert drawn(1) == drawn(1) != drawn(2)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        warmup_examples([], 5, 0, correct_fraction=0.3)
    with pytest.raises(ValueError, match=r"correct_fraction must lie in \[0, 1\]"):
        warmup_examples(PROBLEMS, 5, 0, correct_fraction=1.5)
