"""What `launch.py tasks` shows of a task: an example, a right and a wrong answer to it, and what its verifier says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reward.registry import build_task, task_class
from reward.task import Example, GeneratedTask, LoadedTask, LocalTask, Sample, Task, shown


def showcase(name: str) -> Iterator[str]:
    """The lines, the first of which begins with the name."""
    sample: Sample | None = getattr(task_class(name), "sample", None)
    if sample is not None:
        task = build_task(name, sample.options)
        yield f"{name}: prompts of your own, from a data set; see docs/rewards.md"
        yield from _example(task, sample.problem, sample.example)
        return
    task = build_task(name, {})
    train, held_out = task.problems("train"), task.problems("eval")
    yield f"{name}: {len(train)} training, {len(held_out)} held-out problems"
    assert isinstance(task, GeneratedTask), f"{name} has neither a sample nor examples"
    yield from _example(task, train[0], task.example(train[0]))


def _example(task: Task, problem: Any, example: Example) -> Iterator[str]:
    yield f"  for example: {shown(task.render(problem))}"
    if isinstance(task, LoadedTask):
        task.load_verifier()
    for outcome, response in (("correct", example.correct), ("incorrect", example.incorrect)):
        if isinstance(task, LocalTask):
            verdict = task.verify(problem, response)
            yield f"  {verdict.outcome}: {response}  ({verdict.reason or 'says the verifier'})"
        else:
            yield f"  {outcome}: {response}  (if that is what the service says)"
