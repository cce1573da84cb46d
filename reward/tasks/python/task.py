"""A user's Python function as verifier. The configuration names it; docs/rewards.md says how to write one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence, Set, ValuesView
from dataclasses import replace
from typing import Any

from pydantic import field_validator

from cluster.core.schema import Number
from cluster.core.types import IndexedVerdicts, Verdict
from reward.dataset.rows import SUM, DatasetOptions, DatasetProblems
from reward.user_functions import EventLoop, load_function
from reward.verdicts import error_verdict, verdict_of


class PythonOptions(DatasetOptions):
    """The user's prompts and function."""

    function: str | None = None
    """The verifier, as `module:function`. The module is searched in the working directory and on PYTHONPATH. The
    function is called with (problem, response): a row of the data as a dictionary, and the response's text."""
    batched: bool = False
    """Call the function with (problems, responses), two lists of equal length. It returns as many rewards."""
    correct_from: Number = 1.0
    """The smallest reward of a correct response, unless the function returns an outcome."""

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, name: str | None) -> str | None:
        module, colon, function = (name or "").partition(":")
        if name is not None and not (module and colon and function):
            raise ValueError("write it as module:function")
        return name


def sample_score(problem: dict[str, Any], response: str) -> bool:
    """Return True if the response ends with the answer: the verifier of the sample that `launch.py tasks` shows."""
    return bool(response.rpartition("Answer:")[2].strip() == problem["answer"])


class PythonTask(DatasetProblems):
    """A task with the user's prompts, scored by the user's function."""

    Options = PythonOptions
    sample = replace(SUM, options={"function": "reward.tasks.python.task:sample_score"})
    verifier_option = "function"

    def __init__(self, options: PythonOptions) -> None:
        super().__init__(options)
        self._options = options
        self._function: Callable[..., Any] | None = None
        self._event_loop = EventLoop()
        self.batched = options.batched

    def load_verifier(self) -> None:
        """Import the function.

        Raises:
            ValueError: if there is no such function.
            Exception: whatever the import of its module raises.
        """
        if self._options.function is None:
            raise ValueError("name the verifier: set task.options.function to module:function")
        parameters = ("problems", "responses") if self._options.batched else ("problem", "response")
        self._function = load_function(self._options.function, *parameters)
        # Most coroutines wait for a remote service, so they are run concurrently.
        self.batched = self._options.batched or inspect.iscoroutinefunction(self._function)

    def verify(self, problem: Any, response: str) -> Verdict:
        if self._options.batched:
            (verdict,) = self._verdicts_of_many([problem], [response])
            return verdict
        assert self._function is not None, "call load_verifier first"
        return self._verdict(self._event_loop.result(self._function(problem, response)))

    def verify_batch(self, problems: Sequence[Any], responses: Sequence[str]) -> Iterator[IndexedVerdicts]:
        if self._options.batched:
            yield list(enumerate(self._verdicts_of_many(problems, responses)))
            return
        assert self._function is not None, "call load_verifier first"
        calls = [self._function(*request) for request in zip(problems, responses, strict=True)]
        for returned in self._event_loop.results(calls):
            yield [(index, self._verdict_or_error(result)) for index, result in returned]

    def _verdicts_of_many(self, problems: Sequence[Any], responses: Sequence[str]) -> list[Verdict]:
        assert self._function is not None, "call load_verifier first"
        rewards = self._event_loop.result(self._function(list(problems), list(responses)))
        if isinstance(rewards, Set | Mapping | ValuesView):
            raise ValueError(
                f"the verifier returned a {type(rewards).__name__}, whose order says nothing about the responses; "
                "return a list"
            )
        if isinstance(rewards, str | bytes) or not hasattr(rewards, "__len__"):
            raise ValueError(
                f"the verifier returned {rewards!r:.100} for {len(responses)} responses, not a list"
            )
        if len(rewards) != len(responses):
            raise ValueError(f"the verifier returned {len(rewards)} rewards for {len(responses)} responses")
        return [self._verdict_or_error(reward) for reward in rewards]

    def _verdict(self, returned: Any) -> Verdict:
        return verdict_of(returned, self._options.correct_from)

    def _verdict_or_error(self, returned: Any) -> Verdict:
        """Return the verdict. An invalid reward, or an exception in its place, is one error verdict."""
        if isinstance(returned, BaseException):
            return error_verdict(returned)
        try:
            return self._verdict(returned)
        except Exception as error:  # also of the value's own class
            return error_verdict(error)


TASK = PythonTask
