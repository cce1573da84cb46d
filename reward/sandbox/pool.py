"""The sandbox: verifier processes that share a queue of responses to score.

    score() ─▶ queue ─▶ supervisor 0 ⇄ process 0    A supervisor takes a batch that takes about 20 ms to score.
                 ▲  └─▶ supervisor 1 ⇄ process 1    If one verdict takes longer, the responses that its process has
                 └────── put back ─────┘            not begun return to the queue, for the other processes.

A verdict that exceeds its time limit costs its process, which is killed and replaced. If a process dies while several
responses are in progress, it is unknown which of them is responsible. Each of them is then scored again alone, and
gets an error verdict if the process dies again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

from cluster.core.types import IndexedVerdicts
from reward.pace import Pace
from reward.sandbox.batch import Batch
from reward.sandbox.items import Call, Item
from reward.sandbox.process import ProcessFailedError, VerifierProcess
from reward.sandbox.spec import Limits, RunnerSpec
from reward.verdicts import failed_verdict

logger = logging.getLogger(__name__)

MAX_BATCH = 64
BATCH_S = 0.02
"""The intended duration of a batch: long compared with the cost of sending it, short compared with the time that a
verdict may wait."""
MAX_BATCH_CHARACTERS = 2**20
"""The length of the responses above which a batch takes no further one."""
FAILED_STARTS = 3
"""The number of failed starts in a row after which no response waits for the next one, which would fail as well."""
RESTART_DELAY_S = 0.5
"""The delay after the first failed start. It grows with each further one."""
LONGEST_RESTART_DELAY_S = 30.0


class SandboxError(RuntimeError):
    """The verifier cannot be started at all; the message says why."""


class Sandbox:
    """Scores responses in separate processes.

    Usage:
        async with Sandbox(spec, limits, processes=4) as sandbox:
            async for verdicts in sandbox.score([(problem, "a response"), (problem, "another")]):
                ...  # pairs of an index (0 or 1) and a verdict, as they become available
    """

    def __init__(self, spec: RunnerSpec, limits: Limits, processes: int) -> None:
        self._spec = spec
        self._limits = limits
        self._processes = processes
        self._queue: deque[Item] = deque()
        self._filled = asyncio.Event()
        self._supervisors: list[asyncio.Task[None]] = []
        self._verdict_s = BATCH_S
        """A moving average of the time for one verdict. It starts at a pessimistic value."""
        self._failed: dict[int, str] = {}
        """The supervisors whose process cannot be started, with the reason. If all are here, nothing can be scored."""

    async def __aenter__(self) -> Sandbox:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def pace(self) -> Pace:
        return Pace.of_processes(self._processes, self._limits.timeout_s)

    async def start(self) -> None:
        """Start the processes and return when the first of them is ready.

        Raises:
            SandboxError: if the runner cannot be made.
        """
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._supervisors = [
            asyncio.create_task(self._supervise(number, ready)) for number in range(self._processes)
        ]
        try:
            await ready
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Kill all processes. Responses that still wait get error verdicts."""
        for supervisor in self._supervisors:
            supervisor.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)

    def score(self, requests: Sequence[tuple[Any, str]]) -> AsyncIterator[IndexedVerdicts]:
        """Yield one verdict per (problem, response) pair, as they become available.

        A verifier that fails or exceeds its time limit gives a verdict that says so.
        """
        call = Call(len(requests))
        self._queue.extend(Item(call, index, problem, text) for index, (problem, text) in enumerate(requests))
        if len(self._failed) == self._processes:
            number, reason = next(iter(self._failed.items()))
            self._fail(number, reason)
        self._filled.set()
        return call.verdicts()

    # --- one supervisor per process

    async def _supervise(self, number: int, ready: asyncio.Future[None]) -> None:
        """Keep one process running and busy. When the last supervisor ends, nothing can be scored any more."""
        reason = "the sandbox was closed"
        try:
            await self._keep_running(number, ready)
        except Exception as error:
            logger.exception("a supervisor of the sandbox failed")
            reason = f"the sandbox failed: {error!r}"
        finally:
            self._fail(number, reason)

    async def _keep_running(self, number: int, ready: asyncio.Future[None]) -> None:
        """Start a process whenever none runs. After several failed starts in a row, responses get errors until a start
        succeeds: the cause may pass, such as a file system or a machine that is overloaded."""
        failed_starts = 0
        while True:
            try:
                await self._run_process(number, ready)
                failed_starts = 0
            except (ProcessFailedError, OSError) as error:
                failed_starts += 1
                if not ready.done():
                    ready.set_exception(SandboxError(str(error)))
                logger.warning("a verifier process did not start: %s", error)
                if failed_starts >= FAILED_STARTS:
                    self._fail(number, f"the verifier cannot be started any more: {error}")
                await asyncio.sleep(min(RESTART_DELAY_S * failed_starts, LONGEST_RESTART_DELAY_S))

    async def _run_process(self, number: int, ready: asyncio.Future[None]) -> None:
        """Start a process and use it until it has to be replaced.

        Raises:
            ProcessFailedError, OSError: if it does not start.
        """
        process = VerifierProcess(self._spec, self._limits)
        try:
            batched = await process.ready()
            self._failed.pop(number, None)
            if not ready.done():
                ready.set_result(None)
            await self._feed(process, batched)
        finally:
            await process.end()

    def _fail(self, number: int, reason: str) -> None:
        """Record that a supervisor has no process. If no other one has any, all responses that wait get errors."""
        self._failed[number] = reason
        if len(self._failed) == self._processes:
            while self._queue:
                self._queue.popleft().settle(failed_verdict(reason))

    async def _feed(self, process: VerifierProcess, batched: bool) -> None:
        """Give batches to the process until it has to be replaced."""
        scored, usable = 0, True
        while usable and scored < self._limits.recycle_after:
            items = await self._take(batched)
            batch = Batch(process, items, self._limits, self._put_back)
            started = time.monotonic()
            try:
                usable = await batch.run()
            finally:
                self._put_back(batch.outstanding.values())  # not empty if this task was cancelled
            scored += batch.settled
            if batch.settled:
                self._verdict_s += 0.3 * ((time.monotonic() - started) / batch.settled - self._verdict_s)

    async def _take(self, batched: bool) -> list[Item]:
        """Wait for the next batch. It leaves a fair part of the queue to the other processes."""
        while not self._queue:
            self._filled.clear()
            await self._filled.wait()
        first = self._queue.popleft()
        if first.alone:
            return [first]
        fair = -(-len(self._queue) // self._processes)
        quick = MAX_BATCH if batched else max(1, int(BATCH_S / max(self._verdict_s, 1e-6)))
        items, characters = [first], len(first.response)
        while len(items) < min(fair, quick, MAX_BATCH) and self._queue and not self._queue[0].alone:
            if (characters := characters + len(self._queue[0].response)) > MAX_BATCH_CHARACTERS:
                break
            items.append(self._queue.popleft())
        return items

    def _put_back(self, items: Collection[Item]) -> None:
        if items:
            self._queue.extendleft(reversed(list(items)))
            self._filled.set()
