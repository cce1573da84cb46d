"""The examples for a starter model: well-formed answers, with the requested fraction of correct ones."""

from __future__ import annotations

import pytest

from reward.tasks.telelogs.generator import GeneratedProblems, GeneratorOptions
from reward.tasks.telelogs.starter import warmup_examples
from reward.tasks.telelogs.task import TeleLogsOptions, TeleLogsTask
from reward.tasks.telelogs.verifier import verify

PROBLEMS = list(GeneratedProblems(GeneratorOptions("train", "compact", randomized_labels=True), 40))


@pytest.mark.parametrize(("correct_fraction", "expected"), [(0.0, 0.16), (0.5, 0.58), (1.0, 1.0)])
def test_every_response_names_a_label_and_the_requested_fraction_is_correct(
    correct_fraction: float, expected: float
) -> None:
    """A random label of five to eight is correct by accident in one of six cases."""
    by_question = {problem.question: problem for problem in PROBLEMS}
    correct = 0
    for question, response in warmup_examples(PROBLEMS, 2000, 0, correct_fraction=correct_fraction):
        problem = by_question[question]
        result = verify(response, problem.labels, problem.answer)
        assert result.answer in problem.labels
        correct += result.correct
    assert correct / 2000 == pytest.approx(expected, abs=0.04)


def test_with_more_labels_fewer_guesses_are_correct() -> None:
    options = {
        "style": "compact",
        "train_problems": 40,
        "starter_correct_fraction": 0.0,
        "starter_labels": 50,
    }
    task = TeleLogsTask(TeleLogsOptions.model_validate(options))
    by_question = {problem.question: problem for problem in task.problems("train")}
    examples = task.starter_examples()
    assert {text for _, text in examples} == {f"\\boxed{{C{number}}}" for number in range(1, 51)}
    correct = sum(
        verify(text, by_question[question].labels, by_question[question].answer).correct
        for question, text in examples
    )
    assert correct / len(examples) == pytest.approx(1 / 50, abs=0.01)


def test_the_seed_decides_the_examples() -> None:
    def drawn(seed: int) -> list[tuple[str, str]]:
        return warmup_examples(PROBLEMS, 60, seed, correct_fraction=0.3)

    assert drawn(1) == drawn(1) != drawn(2)


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        warmup_examples([], 5, 0, correct_fraction=0.3)
    with pytest.raises(ValueError, match=r"correct_fraction must lie in \[0, 1\]"):
        warmup_examples(PROBLEMS, 5, 0, correct_fraction=1.5)
