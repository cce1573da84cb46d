"""Train and eval problems have nothing in common, for every task and every source of problems."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reward.registry import build_task, task_names
from reward.tasks.telelogs.generator import GeneratedProblems, GeneratorOptions

Make = Callable[[Path], dict[str, Any]]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows(prompt_field: str) -> list[dict[str, Any]]:
    """Return every prompt several times: with surrounding blanks, and as chat messages."""
    drawn = []
    for i in range(120):
        for question in (f"What is {i % 40} + 1?", f" What is {i % 40} + 1?\n"):
            drawn += [
                {prompt_field: question, "answer": "#### 1"},
                {prompt_field: [{"role": "user", "content": question}], "answer": "#### 1"},
            ]
    random.Random(0).shuffle(drawn)
    return drawn


def same_file(name: str, prompt_field: str) -> tuple[str, Make]:
    return name, lambda path: {"data": write(path / "rows.jsonl", rows(prompt_field)), "eval_fraction": 0.3}


def separate_file(name: str, prompt_field: str) -> tuple[str, Make]:
    """The eval file is a part of the train file."""
    return name, lambda path: {
        "data": write(path / "rows.jsonl", rows(prompt_field)),
        "eval_data": write(path / "eval.jsonl", rows(prompt_field)[:30]),
    }


def puzzles(path: Path) -> dict[str, Any]:
    rng = random.Random(0)
    drawn = [{"target": 24, "nums": rng.sample([1, 2, 3, 4, 6, 8], rng.choice([3, 4]))} for _ in range(400)]
    return {"data": write(path / "puzzles.jsonl", drawn), "eval_fraction": 0.3}


def drives(path: Path) -> list[dict[str, str]]:
    generated = [
        {"question": p.question, "answer": p.answer} for p in GeneratedProblems(GeneratorOptions("train"), 24)
    ]
    return [*generated, *generated[:8]]


def drives_in_two_files(path: Path) -> dict[str, Any]:
    write(path / "train.jsonl", drives(path)[:20])
    write(path / "test.jsonl", drives(path)[12:])
    return {"data": str(path)}


SOURCES: dict[str, tuple[str, Make]] = {
    "countdown, listed": ("countdown", lambda path: {}),
    "countdown, listed, in several orders": ("countdown", lambda path: {"orders_per_puzzle": 3}),
    "countdown, sampled": (
        "countdown",
        lambda path: {"numbers": 4, "number_max": 30, "train_puzzles": 400, "eval_puzzles": 100},
    ),
    "countdown, hard": ("countdown", lambda path: {"difficulty": "hard"}),
    "countdown, data": ("countdown", puzzles),
    "http, the same file": same_file("http", "prompt"),
    "math, the same file": same_file("math", "question"),
    "math, a separate file": separate_file("math", "question"),
    "python, the same file": same_file("python", "prompt"),
    "python, a separate file": separate_file("python", "prompt"),
    "telelogs, generated": ("telelogs", lambda path: {"train_problems": 64, "eval_problems": 64}),
    "telelogs, compact": (
        "telelogs",
        lambda path: {"style": "compact", "train_problems": 256, "eval_problems": 256},
    ),
    "telelogs, data": (
        "telelogs",
        lambda path: {"data": write(path / "rows.jsonl", drives(path)), "eval_fraction": 0.3},
    ),
    "telelogs, data in two files": ("telelogs", drives_in_two_files),
    "telelogs, data with other labels": (
        "telelogs",
        lambda path: {
            "data": write(path / "rows.jsonl", drives(path)),
            "eval_fraction": 0.3,
            "randomized_labels": True,
        },
    ),
}


def test_no_task_is_left_out() -> None:
    assert {name for name, _ in SOURCES.values()} == set(task_names())


@pytest.mark.parametrize("source", SOURCES)
def test_no_eval_problem_is_trained_on(source: str, tmp_path: Path) -> None:
    """Neither its prompt nor the puzzle behind it is in the train split."""
    name, make = SOURCES[source]
    task = build_task(name, make(tmp_path))
    train, evaluation = task.problems("train"), task.problems("eval")
    assert train
    assert evaluation

    def seen(problem: Any) -> str:
        prompt = task.render(problem)
        return (
            prompt.strip() if isinstance(prompt, str) else json.dumps([m["content"].strip() for m in prompt])
        )

    assert not {seen(problem) for problem in train} & {seen(problem) for problem in evaluation}
    if name == "countdown":
        assert not {problem.key for problem in train} & {problem.key for problem in evaluation}
    if name == "telelogs":
        assert not {problem.question for problem in train} & {problem.question for problem in evaluation}
