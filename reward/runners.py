"""How a verifier process judges: by the task's verifier, with the rewards added that shape it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.core.config import ShapingConfig
from cluster.core.types import IndexedVerdicts, Verdict
from reward.registry import build_task
from reward.shaping import Shaping
from reward.task import BatchTask, LoadedTask, LocalTask


def task_runner(name: str, options: Mapping[str, Any], shaping: Sequence[ShapingConfig]) -> TaskRunner:
    """The factory that recipes name.

    Raises:
        Exception: whatever the import of a user's module raises.
    """
    task = build_task(name, options)
    assert isinstance(task, LocalTask), f"the verdicts of {name} come from somewhere else"
    if isinstance(task, LoadedTask):
        task.load_verifier()
    return TaskRunner(task, Shaping(shaping))


class TaskRunner:
    """Only what was judged is shaped, and only its reward: a failed verdict has none, and the outcome stays."""

    def __init__(self, task: LocalTask, shaping: Shaping) -> None:
        self._task = task
        self._shaping = shaping
        self.batched = isinstance(task, BatchTask) and task.batched

    def score(self, problem: Any, response: str) -> Verdict:
        return self._shaped(self._task.verify(problem, response), problem, response)

    def score_batch(self, problems: Sequence[Any], responses: Sequence[str]) -> Iterator[IndexedVerdicts]:
        assert isinstance(self._task, BatchTask)
        for placed in self._task.verify_batch(problems, responses):
            yield [(i, self._shaped(verdict, problems[i], responses[i])) for i, verdict in placed]

    def _shaped(self, verdict: Verdict, problem: Any, response: str) -> Verdict:
        if not self._shaping or verdict.outcome not in ("correct", "incorrect"):
            return verdict
        return replace(verdict, reward=verdict.reward + self._shaping.reward(problem, response))
