"""Your own verifier: a Python function that is named in the configuration. How to write one: docs/rewards.md."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pydantic import field_validator

from cluster.core.types import IndexedVerdicts, Verdict
from reward.dataset.options import DatasetOptions
from reward.dataset.rows import DatasetProblems
from reward.dataset.sample import SUM
from reward.functions import Coroutines, load_function
from reward.sandbox.failures import failed
from reward.verdicts import verdict_of


class PythonOptions(DatasetOptions):
    """Your prompts, and your function."""

    function: str | None = None
    """`module:function`. The module is looked for in the directory that the command is given in, and on PYTHONPATH.
    It is called with (problem, response): a row of the data as a dictionary, and the response's text."""
    batched: bool = False
    """It is called with (problems, responses), two lists of the same length, and returns as many rewards."""
    correct_from: float = 1.0
    """A response is right when its reward is at least this, unless the function says otherwise."""

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, name: str | None) -> str | None:
        module, colon, function = (name or "").partition(":")
        if name is not None and not (module and colon and function):
            raise ValueError("write it as module:function")
        return name


class PythonTask(DatasetProblems):
    Options = PythonOptions
    sample = replace(SUM, options={"function": "reward.tasks.python.sample:score"})
    verifier_option = "function"

    def __init__(self, options: PythonOptions) -> None:
        super().__init__(options)
        self._options = options
        self._function: Callable[..., Any] | None = None
        self._coroutines = Coroutines()
        self.batched = options.batched

    def load_verifier(self) -> None:
        """Raises ValueError if there is no such function, or whatever the import of its module raises."""
        if self._options.function is None:
            raise ValueError("name the verifier: set task.options.function to module:function")
        parameters = ("problems", "responses") if self._options.batched else ("problem", "response")
        self._function = load_function(self._options.function, *parameters)
        # Coroutines wait, most of them for somebody else's service, so they wait together.
        self.batched = self._options.batched or inspect.iscoroutinefunction(self._function)

    def verify(self, problem: Any, response: str) -> Verdict:
        if self._options.batched:
            (verdict,) = self._verdicts_of_many([problem], [response])
            return verdict
        assert self._function is not None, "load_verifier comes first"
        return self._verdict(self._coroutines.result(self._function(problem, response)))

    def verify_batch(self, problems: Sequence[Any], responses: Sequence[str]) -> Iterator[IndexedVerdicts]:
        if self._options.batched:
            yield list(enumerate(self._verdicts_of_many(problems, responses)))
            return
        assert self._function is not None, "load_verifier comes first"
        calls = [self._function(*asked) for asked in zip(problems, responses, strict=True)]
        for returned in self._coroutines.results(calls):
            yield [(place, self._verdict_or_failure(result)) for place, result in returned]

    def _verdicts_of_many(self, problems: Sequence[Any], responses: Sequence[str]) -> list[Verdict]:
        assert self._function is not None, "load_verifier comes first"
        rewards = self._coroutines.result(self._function(list(problems), list(responses)))
        if isinstance(rewards, str | dict) or not hasattr(rewards, "__len__"):
            raise ValueError(
                f"the verifier returned {rewards!r:.100} for {len(responses)} responses, not a list"
            )
        if len(rewards) != len(responses):
            raise ValueError(f"the verifier returned {len(rewards)} rewards for {len(responses)} responses")
        return [self._verdict_or_failure(reward) for reward in rewards]

    def _verdict(self, returned: Any) -> Verdict:
        return verdict_of(returned, self._options.correct_from)

    def _verdict_or_failure(self, returned: Any) -> Verdict:
        """One bad reward of many, or one exception in its place, is one failure."""
        if isinstance(returned, BaseException):
            return failed(returned)
        try:
            return self._verdict(returned)
        except ValueError as error:
            return failed(error)


TASK = PythonTask
