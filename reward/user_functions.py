"""Functions that users name in a configuration: found by name, and called whether they are coroutines or not."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterator, Sequence
from importlib import import_module
from typing import Any


def load_function(name: str, *parameters: str) -> Callable[..., Any]:
    """Return the function `module:function`. Its module is searched on `sys.path`.

    Raises:
        ValueError: if there is no such function, or it cannot be called with `parameters`.
        Exception: whatever the import of the module raises.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"{name!r} does not name a function: write it as module:function")
    module = import_module(module_name)
    function: Any = getattr(module, attribute, None)
    if not callable(function):
        where = getattr(module, "__file__", None) or module_name
        raise ValueError(f"there is no function {attribute!r} in {where}")
    found: Callable[..., Any] = function
    try:
        signature = inspect.signature(found)
    except ValueError:  # a function written in C has no signature; a mismatch shows when it is called
        return found
    try:
        signature.bind(*parameters)
    except TypeError:
        raise ValueError(
            f"{name} has the parameters {signature}, but will be called with ({', '.join(parameters)})"
        ) from None
    return found


class EventLoop:
    """One event loop for all calls of a user's coroutines.

    A client that a function keeps from one call to the next, such as an HTTP session, stays in its event loop.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def result(self, returned: Any) -> Any:
        """Return `returned`, or its result if it has to be awaited."""
        return self._runner.run(_await(returned)) if inspect.isawaitable(returned) else returned

    def results(self, coroutines: Sequence[Coroutine[Any, Any, Any]]) -> Iterator[list[tuple[int, Any]]]:
        """Run all coroutines concurrently and yield (index, result) pairs as they finish.

        The result of a coroutine that raised is the exception.
        """
        loop = self._runner.get_loop()
        indices = {loop.create_task(coroutine): index for index, coroutine in enumerate(coroutines)}
        pending: set[asyncio.Task[Any]] = set(indices)
        try:
            while pending:
                done, pending = self._runner.run(_wait_for_one(pending))
                yield [(indices[task], _result_or_exception(task)) for task in done]
        finally:
            for task in pending:
                task.cancel()


def _result_or_exception(task: asyncio.Task[Any]) -> Any:
    error = task.exception()
    return task.result() if error is None else error


async def _await(returned: Any) -> Any:
    return await returned


async def _wait_for_one(
    tasks: set[asyncio.Task[Any]],
) -> tuple[set[asyncio.Task[Any]], set[asyncio.Task[Any]]]:
    """Return the tasks that are done, at least one, and the tasks that are not."""
    return await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
