"""The sandbox: verifier processes that share a queue of responses to judge.

    judge() ─▶ queue ─▶ keeper 0 ⇄ process 0        A keeper takes a batch, small enough to be judged in some 20 ms.
                 ▲  └─▶ keeper 1 ⇄ process 1        What its process has not begun when one verdict takes longer
                 └────── given back ──┘             goes back to the queue, and to the other processes.

A verdict that overruns kills its process, and another is started. A process that dies with several responses under
way says nothing about which of them did it: each is judged again alone, and one that does it again is to blame.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

from cluster.core.types import Verdict
from reward.sandbox.batch import Batch, Call, Item
from reward.sandbox.process import ProcessFailedError, VerifierProcess
from reward.sandbox.recipe import Limits, Recipe

logger = logging.getLogger(__name__)

MAX_BATCH = 64
BATCH_S = 0.02
"""What a batch should take: long beside the cost of sending it, short beside what one waits for a verdict."""
FAILED_STARTS = 3
"""In a row. Then it is given up, since the next start will fail as well."""
RESTART_DELAY_S = 0.5
"""After a failed start; longer after each further one."""


class SandboxError(RuntimeError):
    """The verifier cannot be started at all; the message says why."""


class Sandbox:
    """Judges responses in processes of its own.

    Usage:
        async with Sandbox(recipe, limits, processes=4) as sandbox:
            async for verdicts in sandbox.score([(problem, "a response"), (problem, "another")]):
                ...  # pairs of 0 or 1 and a verdict, as they come
    """

    def __init__(self, recipe: Recipe, limits: Limits, processes: int) -> None:
        self._recipe = recipe
        self._limits = limits
        self._processes = processes
        self._queue: deque[Item] = deque()
        self._filled = asyncio.Event()
        self._supervisors: list[asyncio.Task[None]] = []
        self._verdict_s = BATCH_S
        """What a verdict takes, as seen lately. At first it is supposed to be slow."""
        self._keeping = 0
        self._broken: str | None = None
        """Why there are no more verdicts."""

    async def __aenter__(self) -> Sandbox:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the processes; return when the first of them is ready, the others follow.

        Raises:
            SandboxError: the recipe's judge cannot be made.
        """
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeping = self._processes
        self._supervisors = [asyncio.create_task(self._keep(ready)) for _ in range(self._processes)]
        try:
            await ready
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Kill all processes. Calls that still wait get error verdicts."""
        for keeper in self._supervisors:
            keeper.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)

    def score(self, asked: Sequence[tuple[Any, str]]) -> AsyncIterator[list[tuple[int, Verdict]]]:
        """One verdict per problem and response, each with its place among them, as they come. A verifier that fails or
        overruns gives verdicts that say so."""
        call = Call(len(asked))
        self._queue.extend(Item(call, index, problem, text) for index, (problem, text) in enumerate(asked))
        if self._broken is not None:
            self._give_up(self._broken)
        self._filled.set()
        return call.verdicts()

    # --- one keeper per process

    async def _keep(self, ready: asyncio.Future[None]) -> None:
        """Keep one process running and busy. When the last keeper ends, so do the verdicts."""
        reason = "the sandbox was closed"
        try:
            reason = f"the verifier cannot be started any more: {await self._keep_starting(ready)}"
        except Exception as error:
            logger.exception("a keeper of the sandbox failed")
            reason = f"the sandbox failed: {error!r}"
        finally:
            self._keeping -= 1
            if not self._keeping:
                self._give_up(reason)

    async def _keep_starting(self, ready: asyncio.Future[None]) -> str:
        """Start a process whenever there is none, until that fails too often. Returns why it failed."""
        failed_starts = 0
        while True:
            process: VerifierProcess | None = None
            try:
                process = VerifierProcess(self._recipe, self._limits)
                batched = await process.ready()
                failed_starts = 0
                if not ready.done():
                    ready.set_result(None)
                await self._serve(process, batched)
            except (ProcessFailedError, OSError) as error:
                failed_starts += 1
                if not ready.done():
                    ready.set_exception(SandboxError(str(error)))
                else:
                    logger.warning("a verifier process did not start: %s", error)
                if failed_starts == FAILED_STARTS:
                    return str(error)
                await asyncio.sleep(RESTART_DELAY_S * failed_starts)
            finally:
                if process is not None:
                    process.kill()

    async def _serve(self, process: VerifierProcess, batched: bool) -> None:
        """Feed the process until it is worn out or unfit."""
        judged, fit = 0, True
        while fit and judged < self._limits.recycle_after:
            items = await self._take(batched)
            batch = Batch(process, items, self._limits, self._put_back)
            started = time.monotonic()
            try:
                fit = await batch.run()
            finally:
                self._put_back(batch.outstanding.values())  # there are some if this was cancelled
            judged += len(items)
            self._verdict_s += 0.3 * ((time.monotonic() - started) / len(items) - self._verdict_s)

    async def _take(self, batched: bool) -> list[Item]:
        """The next batch. It leaves some for the other processes."""
        while not self._queue:
            self._filled.clear()
            await self._filled.wait()
        first = self._queue.popleft()
        if first.alone:
            return [first]
        fair = -(-len(self._queue) // self._processes)
        quick = MAX_BATCH if batched else max(1, int(BATCH_S / max(self._verdict_s, 1e-6)))
        items = [first]
        while len(items) < min(fair, quick, MAX_BATCH) and self._queue and not self._queue[0].alone:
            items.append(self._queue.popleft())
        return items

    def _put_back(self, items: Collection[Item]) -> None:
        if items:
            self._queue.extendleft(reversed(list(items)))
            self._filled.set()

    def _give_up(self, reason: str) -> None:
        self._broken = reason
        while self._queue:
            self._queue.popleft().settle(Verdict("error", 0.0, None, reason))
