"""The examples that `launch.py tasks` shows of each task: the correct ones are correct, the incorrect ones are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reward
from reward.registry import build_task, describe_task, task_names
from reward.task import GeneratedTask, shown
from reward.tasks.countdown.puzzles import Puzzle
from reward.tasks.countdown.solver import reachable_values
from reward.tasks.countdown.task import CountdownOptions, CountdownTask

GENERATED = [name for name in task_names() if isinstance(build_task(name, {}), GeneratedTask)]


def test_some_tasks_generate_their_problems() -> None:
    assert GENERATED == ["countdown", "telelogs"]


@pytest.mark.parametrize("name", GENERATED)
def test_the_examples_of_the_first_problems_have_the_stated_outcomes(name: str) -> None:
    task = build_task(name, {})
    assert isinstance(task, GeneratedTask)
    for problem in task.problems("train")[:20]:
        example = task.example(problem)
        outcomes = [
            task.verify(problem, response).outcome for response in (example.correct, example.incorrect)
        ]
        assert outcomes == ["correct", "incorrect"]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=3), st.data())
def test_an_incorrect_example_is_incorrect_for_any_puzzle(numbers: list[int], data: Any) -> None:
    """This holds even if the sum of the numbers is the target."""
    targets = sorted(value for value in reachable_values(tuple(numbers)) if isinstance(value, int))
    puzzle = Puzzle(tuple(numbers), data.draw(st.sampled_from([sum(numbers), *targets])))
    task = CountdownTask(CountdownOptions())
    assert task.verify(puzzle, task.example(puzzle).incorrect).outcome == "incorrect"
    assert task.verify(puzzle, task.example(puzzle).correct).outcome == "correct"


ONE_FILE = """
from pydantic import BaseModel, ConfigDict
from cluster.core.types import Verdict
from reward.task import Example

class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

class Echo:
    Options = Options
    def __init__(self, options): pass
    def problems(self, split): return [split]
    def render(self, problem): return f"Say {problem}."
    def verify(self, problem, response):
        correct = response == problem
        return Verdict("correct" if correct else "incorrect", float(correct), response, "")
    def example(self, problem): return Example(problem, "nothing")

TASK = Echo
"""


def test_a_task_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is enough; no list names the task."""
    (tmp_path / "echo").mkdir()
    (tmp_path / "echo" / "task.py").write_text(ONE_FILE)
    monkeypatch.setattr(reward.tasks, "__path__", [*reward.tasks.__path__, str(tmp_path)])
    assert "echo" in task_names()
    assert list(describe_task("echo")) == [
        "echo: 1 train problems, 1 eval problems",
        "  for example: 'Say train.'",
        "  correct: train  (says the verifier)",
        "  incorrect: nothing  (says the verifier)",
    ]
    with pytest.raises(KeyError):
        build_task("nothing", {})


@pytest.mark.parametrize("name", task_names())
def test_every_task_shows_a_correct_and_an_incorrect_response(name: str) -> None:
    first, example, correct, incorrect = describe_task(name)
    assert first.startswith(f"{name}: ")
    assert example.startswith("  for example: ")
    assert correct.startswith("  correct: ")
    assert incorrect.startswith("  incorrect: ")


def test_long_prompts_are_shown_with_their_beginning_and_end_on_one_line() -> None:
    assert shown("3 5 = 8\n") == "'3 5 = 8\\n'"
    assert shown([{"role": "user", "content": "a" * 300 + "\n" + "b" * 300}]) == repr(
        "a" * 200 + " … " + "b" * 200
    )
