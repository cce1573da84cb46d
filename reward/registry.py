"""The tasks that a configuration can name: each is a file `reward/tasks/NAME/task.py` whose `TASK` is its class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from reward.task import Example, GeneratedTask, LoadedTask, LocalTask, Sample, Task, shown


def task_names() -> list[str]:
    """Return the names of all tasks, sorted."""
    folders = import_module("reward.tasks").__path__
    return sorted(file.parent.name for folder in folders for file in Path(folder).glob("*/task.py"))


def task_class(name: str) -> type[Task]:
    """Return the class of a task.

    Raises:
        KeyError: if no task has this name.
    """
    if name not in task_names():
        raise KeyError(name)
    found: type[Task] = import_module(f"reward.tasks.{name}.task").TASK
    return found


def build_task(name: str, options: Mapping[str, Any]) -> Task:
    """Return a task that is ready for use.

    Raises:
        KeyError: if no task has this name.
        pydantic.ValidationError: if the options do not fit the task's schema.
    """
    found = task_class(name)
    return found(found.Options(**options))


def describe_task(name: str) -> Iterator[str]:
    """Yield the lines that `launch.py tasks` prints of a task: an example, and the verdicts on two responses to it.

    The first line begins with the name.
    """
    sample: Sample | None = getattr(task_class(name), "sample", None)
    if sample is not None:
        task = build_task(name, sample.options)
        yield f"{name}: prompts of your own, from a data set; see docs/rewards.md"
        yield from _describe_example(task, sample.problem, sample.example)
        return
    task = build_task(name, {})
    train, evaluation = task.problems("train"), task.problems("eval")
    yield f"{name}: {len(train)} train problems, {len(evaluation)} eval problems"
    assert isinstance(task, GeneratedTask), f"{name} has neither a sample nor examples"
    yield from _describe_example(task, train[0], task.example(train[0]))


def _describe_example(task: Task, problem: Any, example: Example) -> Iterator[str]:
    yield f"  for example: {shown(task.render(problem))}"
    if isinstance(task, LoadedTask):
        task.load_verifier()
    for outcome, response in (("correct", example.correct), ("incorrect", example.incorrect)):
        if isinstance(task, LocalTask):
            verdict = task.verify(problem, response)
            yield f"  {verdict.outcome}: {response}  ({verdict.reason or 'says the verifier'})"
        else:
            yield f"  {outcome}: {response}  (if that is what the service says)"
