"""Every wait for another process has a deadline, and says what it waits for."""

from __future__ import annotations

import asyncio
import time
from typing import Any


async def within(timeout_s: float, awaitable: Any, what: str) -> Any:
    """What `awaitable` gives.

    Raises:
        TimeoutError: nothing in time; names `what` was waited for.
    """
    started = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            return await awaitable
    except TimeoutError:
        waited_s = time.monotonic() - started
        raise TimeoutError(f"waited {waited_s:.0f} s for {what}") from None
