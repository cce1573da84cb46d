"""A user's function: found by its name, and called whether it is a coroutine or not."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterator, Sequence
from importlib import import_module
from typing import Any


def load_function(name: str, *parameters: str) -> Callable[..., Any]:
    """The function `module:function`, found on `sys.path`.

    Raises:
        ValueError: there is none, or it cannot be called with `parameters`.
        Exception: whatever the import of the module raises.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"{name!r} is no function: write it as module:function")
    module = import_module(module_name)
    function = getattr(module, attribute, None)
    if not callable(function):
        where = getattr(module, "__file__", None) or module_name
        raise ValueError(f"there is no function {attribute!r} in {where}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # written in C: it shows when it is called
        return function
    try:
        signature.bind(*parameters)
    except TypeError:
        raise ValueError(
            f"{name} takes {signature}, but will be called with ({', '.join(parameters)})"
        ) from None
    return function


class Coroutines:
    """Runs what functions return, if it is to be awaited, in one event loop for all calls: clients that a function
    keeps for the next call stay in theirs."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def result(self, returned: Any) -> Any:
        return self._runner.run(_awaited(returned)) if inspect.isawaitable(returned) else returned

    def results(self, coroutines: Sequence[Coroutine[Any, Any, Any]]) -> Iterator[list[tuple[int, Any]]]:
        """Of all at the same time, as they come, each with its place. In place of a result there may be the exception
        that was raised."""
        loop = self._runner.get_loop()
        places = {loop.create_task(coroutine): place for place, coroutine in enumerate(coroutines)}
        pending: set[asyncio.Task[Any]] = set(places)
        try:
            while pending:
                done, pending = self._runner.run(_some(pending))
                yield [(places[task], _outcome(task)) for task in done]
        finally:
            for task in pending:
                task.cancel()


def _outcome(task: asyncio.Task[Any]) -> Any:
    error = task.exception()
    return task.result() if error is None else error


async def _awaited(returned: Any) -> Any:
    return await returned


async def _some(tasks: set[asyncio.Task[Any]]) -> tuple[set[asyncio.Task[Any]], set[asyncio.Task[Any]]]:
    """Those that are done, at least one, and the others."""
    return await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
