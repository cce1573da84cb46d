"""A user's function: found by its name, and called whether it is a coroutine or not."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Sequence
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

    def results(self, coroutines: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """Of all at the same time. In place of a result there may be the exception that was raised."""
        return self._runner.run(_gathered(coroutines))


async def _awaited(returned: Any) -> Any:
    return await returned


async def _gathered(coroutines: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    return await asyncio.gather(*coroutines, return_exceptions=True)
