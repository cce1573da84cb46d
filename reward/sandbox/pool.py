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
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.core.types import IndexedVerdicts, Verdict
from reward.pace import Pace
from reward.sandbox.channel import ProtocolError, unpack
from reward.sandbox.process import ProcessFailedError, VerifierProcess
from reward.sandbox.spec import Limits, RunnerSpec

logger = logging.getLogger(__name__)

MAX_BATCH = 64
BATCH_S = 0.02
"""The intended duration of a batch: long compared with the cost of sending it, short compared with the time that a
verdict may wait."""
PATIENCE_S = 0.04
"""The time that a process may be silent before the responses that it has not begun are given to other processes."""
FAILED_STARTS = 3
"""The number of failed starts in a row after which a supervisor gives up, since the next start would fail as well."""
RESTART_DELAY_S = 0.5
"""The delay after the first failed start. It grows with each further one."""


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
        self._queue: deque[_Item] = deque()
        self._filled = asyncio.Event()
        self._supervisors: list[asyncio.Task[None]] = []
        self._verdict_s = BATCH_S
        """A moving average of the time for one verdict. It starts at a pessimistic value."""
        self._running_supervisors = 0
        self._broken: str | None = None
        """The reason why nothing can be scored any more."""

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
        self._running_supervisors = self._processes
        self._supervisors = [asyncio.create_task(self._supervise(ready)) for _ in range(self._processes)]
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
        call = _Call(len(requests))
        self._queue.extend(
            _Item(call, index, problem, text) for index, (problem, text) in enumerate(requests)
        )
        if self._broken is not None:
            self._give_up(self._broken)
        self._filled.set()
        return call.verdicts()

    # --- one supervisor per process

    async def _supervise(self, ready: asyncio.Future[None]) -> None:
        """Keep one process running and busy. When the last supervisor ends, nothing can be scored any more."""
        reason = "the sandbox was closed"
        try:
            reason = f"the verifier cannot be started any more: {await self._restart_until_it_fails(ready)}"
        except Exception as error:
            logger.exception("a supervisor of the sandbox failed")
            reason = f"the sandbox failed: {error!r}"
        finally:
            self._running_supervisors -= 1
            if not self._running_supervisors:
                self._give_up(reason)

    async def _restart_until_it_fails(self, ready: asyncio.Future[None]) -> str:
        """Start a process whenever none runs. Return the reason when too many starts in a row have failed."""
        failed_starts = 0
        while True:
            process: VerifierProcess | None = None
            try:
                process = VerifierProcess(self._spec, self._limits)
                batched = await process.ready()
                failed_starts = 0
                if not ready.done():
                    ready.set_result(None)
                await self._feed(process, batched)
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

    async def _feed(self, process: VerifierProcess, batched: bool) -> None:
        """Give batches to the process until it has to be replaced."""
        scored, usable = 0, True
        while usable and scored < self._limits.recycle_after:
            items = await self._take(batched)
            batch = _Batch(process, items, self._limits, self._put_back)
            started = time.monotonic()
            try:
                usable = await batch.run()
            finally:
                self._put_back(batch.outstanding.values())  # not empty if this task was cancelled
            scored += len(items)
            self._verdict_s += 0.3 * ((time.monotonic() - started) / len(items) - self._verdict_s)

    async def _take(self, batched: bool) -> list[_Item]:
        """Wait for the next batch. It leaves a fair part of the queue to the other processes."""
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

    def _put_back(self, items: Collection[_Item]) -> None:
        if items:
            self._queue.extendleft(reversed(list(items)))
            self._filled.set()

    def _give_up(self, reason: str) -> None:
        self._broken = reason
        while self._queue:
            self._queue.popleft().settle(Verdict("error", 0.0, None, reason))


class _Call:
    """The responses of one call of `Sandbox.score`. Their verdicts are delivered as they arrive."""

    def __init__(self, responses: int) -> None:
        self._missing = set(range(responses))
        self._arrived: list[tuple[int, Verdict]] = []
        self._changed = asyncio.Event()

    def settle(self, index: int, verdict: Verdict) -> None:
        """Record a verdict. Only the first verdict on a response counts."""
        if index in self._missing:
            self._missing.remove(index)
            self._arrived.append((index, verdict))
            self._changed.set()

    async def verdicts(self) -> AsyncIterator[IndexedVerdicts]:
        """Yield all verdicts, in lists of those that have arrived in the meantime."""
        while self._missing or self._arrived:
            await self._changed.wait()
            self._changed.clear()
            arrived, self._arrived = self._arrived, []
            yield arrived


@dataclass(slots=True, eq=False)
class _Item:
    """One response in the queue."""

    call: _Call
    index: int
    problem: Any
    response: str
    alone: bool = False
    """True if it may have ended a process. It is then scored in a batch of one, which shows if it does so again."""

    def settle(self, verdict: Verdict) -> None:
        self.call.settle(self.index, verdict)


class _Batch:
    """Items that a process scores, under supervision. `outstanding` holds the items without a verdict."""

    def __init__(
        self,
        process: VerifierProcess,
        items: Sequence[_Item],
        limits: Limits,
        put_back: Callable[[Collection[_Item]], None],
    ) -> None:
        self._process = process
        self._items = items
        self._limits = limits
        self._put_back = put_back
        self.outstanding = dict(enumerate(items))

    async def run(self) -> bool:
        """Wait until nothing is outstanding. Return True if the process can take another batch."""
        try:
            self._process.send([(item.problem, item.response) for item in self._items])
            while True:
                try:
                    reply = await self._process.reply(min(PATIENCE_S, max(self._time_left_s(), 0.001)))
                except TimeoutError:
                    if self._handle_silence():
                        return False
                else:
                    self._settle(reply)
                    if reply.get("done"):
                        return not reply.get("children")
        except ProcessFailedError as failure:
            self._handle_death(str(failure))
            return False

    def _time_left_s(self) -> float:
        return self._limits.timeout_s - (time.monotonic_ns() - self._process.progress.since_ns) / 1e9

    def _settle(self, reply: dict[str, Any]) -> None:
        try:
            entries = reply.get("verdicts")
            if not isinstance(entries, list):
                raise ProtocolError("a reply without verdicts")
            for index, verdict in (unpack(entry, len(self._items)) for entry in entries):
                if item := self.outstanding.pop(index, None):
                    item.settle(verdict)
            if reply.get("done") and self.outstanding:
                raise ProtocolError("too few verdicts")
        except ProtocolError as error:
            raise ProcessFailedError(f"the verifier process sent {error}") from None

    def _handle_silence(self) -> bool:
        """Put back the items that the silent process has not begun. Return True if the current one is out of time."""
        running = self._process.progress.current
        self._process.progress.cut = running.stop
        self._put_back([self.outstanding.pop(i) for i in list(self.outstanding) if i not in running])
        if self._time_left_s() <= 0:
            reason = f"no verdict within {self._limits.timeout_s:g} s (reward.verifier_timeout_s)"
            if len(self.outstanding) == 1:
                self._conclude(Verdict("timeout", 0.0, None, reason))
            else:  # scored in one call: one of them may be responsible
                self._suspect_all()
            return True
        if self._process.count_children() > self._limits.child_processes:
            raise ProcessFailedError(
                f"the verifier had more than {self._limits.child_processes} processes running"
            )
        return False

    def _handle_death(self, reason: str) -> None:
        """Blame the item if it was alone for the second time; otherwise any of the items may be responsible."""
        if len(self.outstanding) == 1 and next(iter(self.outstanding.values())).alone:
            self._conclude(Verdict("error", 0.0, None, reason))
        else:
            self._suspect_all()

    def _conclude(self, verdict: Verdict) -> None:
        _, item = self.outstanding.popitem()
        item.settle(verdict)

    def _suspect_all(self) -> None:
        for item in self.outstanding.values():
            item.alone = True
        suspects = list(self.outstanding.values())
        self.outstanding.clear()
        self._put_back(suspects)
