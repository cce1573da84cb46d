"""The clock of a worker's silence: how long it may leave a call without an answer. No Ray.

An engine answers nothing while it loads weights or falls asleep, which has a deadline of its own. So the time of an
update does not count as silence, and a call that is made meanwhile may take as long as the update may.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class SilenceClock:
    """Usage:

    clock = SilenceClock(silence_timeout_s=120, update_timeout_s=300)
    with clock.update():                                # in one task
        ...
    answer, asked_at = asyncio.ensure_future(call), time.monotonic()
    if not await clock.answered(answer, asked_at):      # in another task
        raise TimeoutError(clock.limit)
    """

    def __init__(self, silence_timeout_s: float, update_timeout_s: float) -> None:
        self._silence_timeout_s = silence_timeout_s
        self._update_timeout_s = update_timeout_s
        self._updating = False
        self._updated_at = -math.inf
        """The time at which the last update ended."""

    @property
    def limit(self) -> str:
        """The setting that limits the silence now."""
        return "rollout.update_timeout_s" if self._updating else "rollout.silence_timeout_s"

    @contextmanager
    def update(self) -> Iterator[None]:
        """The engine updates, or falls asleep, during the block."""
        self._updating = True
        try:
            yield
        finally:
            self._updating, self._updated_at = False, time.monotonic()

    async def answered(self, answer: asyncio.Future[Any], asked_at: float, fraction: float = 1.0) -> bool:
        """Wait for `answer`, up to a fraction of the longest silence. Return whether it is there."""
        while not answer.done():
            if (left_s := self._deadline(asked_at, fraction) - time.monotonic()) <= 0:
                return False
            # An update may end meanwhile, and its deadline with it.
            await asyncio.wait({answer}, timeout=min(left_s, self._silence_timeout_s * fraction))
        return True

    def _deadline(self, asked_at: float, fraction: float) -> float:
        silence_s = self._silence_timeout_s * fraction
        if self._updating:
            return asked_at + max(silence_s, self._update_timeout_s)
        return max(asked_at, self._updated_at) + silence_s
