"""Settings of the rescue that have no effect, or that need something else, are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.configuration.preflight import preflight
from reward.tasks.countdown import task as countdown
from tests.cluster.configuration.runs import only_problem, run_config


@pytest.mark.parametrize(
    "rescue",
    [
        {"prefix_fraction": 0.5},
        {"replay_max_age_steps": 4},
        {"examples": 1, "examples_fraction": 1.0, "examples_fade_steps": 3},
    ],
)
def test_each_method_can_be_used(tmp_path: Path, rescue: dict[str, Any]) -> None:
    assert preflight(run_config(tmp_path, rescue=rescue, objective={"importance_cap": 2.0})) == []


def test_replays_need_a_cap_of_their_weights(tmp_path: Path) -> None:
    problem = only_problem(run_config(tmp_path, rescue={"replay_max_age_steps": 4}))
    assert problem.where == "rescue.replay_max_age_steps"
    assert "objective.importance_cap" in problem.fix


@pytest.mark.parametrize("setting", [{"examples_fraction": 0.1}, {"examples_fade_steps": 9}])
def test_settings_of_examples_need_examples(tmp_path: Path, setting: dict[str, Any]) -> None:
    problem = only_problem(run_config(tmp_path, rescue=setting))
    assert problem.where == f"rescue.{next(iter(setting))}"
    assert "no effect" in problem.what


def test_examples_that_no_prompt_gets_are_refused(tmp_path: Path) -> None:
    problem = only_problem(run_config(tmp_path, rescue={"examples": 1, "examples_fraction": 0.0}))
    assert problem.where == "rescue.examples"


def test_a_task_that_cannot_solve_its_problems_gives_no_examples(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"prompt": "{number}?", "answer": "1"}}\n' for number in range(100)))
    options = {"data": str(data), "function": "reward.tasks.python.task:sample_score", "style": "plain"}
    task = {"name": "python", "options": options}
    problems = preflight(run_config(tmp_path, task=task, rescue={"examples": 1}))
    (problem,) = [problem for problem in problems if problem.where == "rescue.examples"]
    assert "the task python has neither a solver nor references" in problem.what
    assert "\n" not in str(problem)


def test_examples_must_leave_room_for_some_prompt(tmp_path: Path) -> None:
    """The tags of an answer are one token each for the starter model."""
    rescue = {"examples": 3, "examples_fraction": 1.0}
    problem = only_problem(run_config(tmp_path, rescue=rescue))
    assert problem.where == "rescue.examples"
    assert "64 leave room for a response" in problem.what
    assert preflight(run_config(tmp_path, rescue=rescue, model={"max_context_tokens": 160})) == []


def test_puzzles_that_take_long_to_solve_give_no_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(countdown, "MAX_SOLVED_NUMBERS", 2)
    problem = only_problem(run_config(tmp_path, rescue={"examples": 1}))
    assert problem.where == "rescue.examples"
    assert problem.what == "too few training problems have a known solution"
