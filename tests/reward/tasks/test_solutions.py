"""The solutions that tasks know: the verifier accepts each of them."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.configuration.example_prompts import solver_of
from reward.registry import build_task, task_names
from reward.task import SolvedTask
from reward.tasks.countdown.puzzles import Puzzle
from reward.tasks.countdown.task import CountdownOptions, CountdownTask
from reward.tasks.math.task import MathOptions, MathTask

SOLVED = [name for name in task_names() if isinstance(build_task(name, {}), SolvedTask)]


def test_these_tasks_know_solutions() -> None:
    assert SOLVED == ["countdown", "math", "telelogs"]
    assert [name for name in task_names() if solver_of(build_task(name, {}))] == SOLVED


@pytest.mark.parametrize("name", ["countdown", "telelogs"])
def test_solutions_of_generated_problems_are_correct(name: str) -> None:
    task: Any = build_task(name, {})
    for problem in task.problems("train")[:20]:
        assert task.verify(problem, task.solution(problem)).outcome == "correct"


@pytest.mark.parametrize(
    "reference", ["80 * 3 / 4 = 60\n#### 60", "so it is $\\boxed{60}$.", "60", 60, 60.0, [1, 2], "x^2"]
)
def test_a_reference_is_a_solution(reference: Any) -> None:
    task = MathTask(MathOptions())
    problem = {"question": "?", "answer": reference}
    assert task.verify(problem, task.solution(problem)).outcome == "correct"


def test_a_puzzle_without_a_solution_or_with_many_numbers_has_none() -> None:
    task = CountdownTask(CountdownOptions())
    assert task.solution(Puzzle((1, 1, 1), 1000)) is None
    assert task.solution(Puzzle((1, 2, 3, 4, 5), 15)) is None
