"""Deadlines for every wait for another process, with messages that name what was waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

ResultT = TypeVar("ResultT")


async def within(timeout_s: float, awaitable: Awaitable[ResultT], what: str) -> ResultT:
    """Return the result of `awaitable`.

    Raises:
        TimeoutError: if there is no result in time. The message names `what` was waited for.
    """
    started = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            return await awaitable
    except TimeoutError:
        waited_s = time.monotonic() - started
        raise TimeoutError(f"waited {waited_s:.0f} s for {what}") from None
