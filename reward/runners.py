"""The code that runs inside a verifier process: the task's verifier, and the shaping rewards added to its verdicts.

`reward/service.py` names the factories below in the specification that it gives to the sandbox.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.core.config import ShapingConfig
from cluster.core.types import IndexedVerdicts, Verdict
from reward.registry import build_task
from reward.task import BatchTask, LoadedTask, LocalTask
from reward.user_functions import EventLoop, load_function
from reward.verdicts import number_of


def task_runner(name: str, options: Mapping[str, Any], shaping: Sequence[ShapingConfig]) -> TaskRunner:
    """Return the runner of a task's verifier, loaded.

    Raises:
        Exception: whatever the import of a user's module raises.
    """
    task = build_task(name, options)
    assert isinstance(task, LocalTask), f"{name} has no verifier that runs in a local process"
    if isinstance(task, LoadedTask):
        task.load_verifier()
    return TaskRunner(task, Shaping(shaping))


def shaping_runner(terms: Sequence[ShapingConfig]) -> ShapingRunner:
    """Return a runner that computes shaping rewards only, for tasks whose verdicts come from another service.

    Raises:
        Exception: whatever the import of a user's module raises.
    """
    return ShapingRunner(Shaping(terms))


class Shaping:
    """The weighted sum of the user's shaping functions.

    Raises:
        Exception: whatever the import of a user's module raises.
    """

    def __init__(self, terms: Sequence[ShapingConfig]) -> None:
        self._terms = [(term.weight, load_function(term.function, "problem", "response")) for term in terms]
        self._event_loop = EventLoop()

    def __bool__(self) -> bool:
        return bool(self._terms)

    def prepare(self, problem: Any) -> bytes:
        """Return a problem as it is before the verifier, which may change it, has seen it."""
        return pickle.dumps(problem) if self._terms else b""

    def reward(self, prepared: bytes, response: str) -> float:
        """Return the reward to add. Each function gets a problem of its own.

        Raises:
            ValueError: if a function does not return a finite number.
            Exception: whatever a function raises.
        """
        return math.fsum(
            weight * number_of(self._event_loop.result(function(pickle.loads(prepared), response)))
            for weight, function in self._terms
        )


class TaskRunner:
    """Scores with a task's verifier and adds the shaping rewards.

    Shaping changes the reward of "correct" and "incorrect" verdicts. It never changes an outcome.
    """

    def __init__(self, task: LocalTask, shaping: Shaping) -> None:
        self._task = task
        self._shaping = shaping
        self.batched = isinstance(task, BatchTask) and task.batched

    def score(self, problem: Any, response: str) -> Verdict:
        prepared = self._shaping.prepare(problem)
        return self._shaped(self._task.verify(problem, response), prepared, response)

    def score_batch(self, problems: Sequence[Any], responses: Sequence[str]) -> Iterator[IndexedVerdicts]:
        assert isinstance(self._task, BatchTask)
        prepared = [self._shaping.prepare(problem) for problem in problems]
        for verdicts in self._task.verify_batch(problems, responses):
            yield [(i, self._shaped(verdict, prepared[i], responses[i])) for i, verdict in verdicts]

    def _shaped(self, verdict: Verdict, prepared: bytes, response: str) -> Verdict:
        if not self._shaping or verdict.outcome not in ("correct", "incorrect"):
            return verdict
        return replace(verdict, reward=verdict.reward + self._shaping.reward(prepared, response))


class ShapingRunner:
    """Gives verdicts whose reward is the shaping reward alone; their outcome means that it could be computed."""

    batched = False

    def __init__(self, shaping: Shaping) -> None:
        self._shaping = shaping

    def score(self, problem: Any, response: str) -> Verdict:
        prepared = self._shaping.prepare(problem)
        return Verdict("correct", self._shaping.reward(prepared, response), None, "")

    def score_batch(self, problems: Sequence[Any], responses: Sequence[str]) -> Iterator[IndexedVerdicts]:
        raise NotImplementedError("shaping functions take one response at a time")
