"""One batch of items in a verifier process: its verdicts, and what happens if they do not come.

The time of a process counts from the moment when it begins an item, which it writes into shared memory. Until then
the batch is on its way: large problems take long to arrive, and a loaded machine takes long for everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from cluster.core.types import Outcome, Verdict
from reward.sandbox.channel import ProtocolError, Scored, pack_request, read_verdicts
from reward.sandbox.items import Item
from reward.sandbox.process import LimitExceededError, ProcessFailedError, VerifierProcess
from reward.sandbox.spec import Limits
from reward.verdicts import describe_error, failed_verdict

PATIENCE_S = 0.04
"""The time that an item may take before those that its process has not begun are given to other processes."""
ARRIVAL_TIMEOUT_S = 60.0
"""The time in which a process begins with a small request, on a machine that is overloaded."""
ARRIVAL_BYTES_PER_S = 2**20
"""The slowest speed at which a large request arrives."""
LONGEST_INSPECTION_PAUSE_S = 0.2
"""The longest pause between two inspections of a process that is scoring a slow item."""
INSPECTION_PAUSE_S = 1.0
"""The pause between two inspections of a process that scores quick items."""


class Batch:
    """Items that a process scores, under supervision. `outstanding` holds the items without a verdict.

    Usage:
        batch = Batch(process, items, limits, put_back)
        if not await batch.run():
            await process.end()    # it cannot be used any more
    """

    def __init__(
        self,
        process: VerifierProcess,
        items: Sequence[Item],
        limits: Limits,
        put_back: Callable[[Collection[Item]], None],
    ) -> None:
        self._process = process
        self._items = items
        self._limits = limits
        self._put_back = put_back
        self._arrival_deadline = self._inspected_at = time.monotonic()
        self._inspection_pause_s = PATIENCE_S
        self.outstanding = dict(enumerate(items))
        self.settled = 0
        """The number of items that have a verdict."""

    async def run(self) -> bool:
        """Wait until nothing is outstanding. Return True if the process can take another batch."""
        try:
            if not (request := self._request()):
                return True
            self._process.send(request, len(self._items))
            arrival_s = ARRIVAL_TIMEOUT_S + len(request) / ARRIVAL_BYTES_PER_S
            self._arrival_deadline = time.monotonic() + arrival_s
            while True:
                try:
                    scored = self._settle(await self._process.reply(self._patience_s()))
                except TimeoutError:
                    pass
                else:
                    if scored.done:
                        return not scored.children
                if self._is_out_of_time():
                    return False
        except ProcessFailedError as failure:
            self._handle_death(failure)
            return False

    def _request(self) -> bytes:
        """Return the request, or nothing if no item is left. Items whose problem cannot be pickled get an error."""
        try:
            return pack_request([(item.call.pickled(item.problem), item.response) for item in self._items])
        except Exception:  # of the class of a problem; which one it is shows below
            able = [item for item in self._items if self._can_be_sent(item)]
        if len(able) == len(self._items):
            raise ProcessFailedError("the problems cannot be sent to a verifier process together")
        self._items, self.outstanding = able, dict(enumerate(able))
        return self._request() if able else b""

    def _can_be_sent(self, item: Item) -> bool:
        try:
            pack_request([(item.call.pickled(item.problem), item.response)])
        except Exception as error:
            what = f"the problem cannot be sent to a verifier process: {describe_error(error)}"
            item.settle(failed_verdict(what))
            self.settled += 1
            return False
        return True

    def _patience_s(self) -> float:
        """Return the time until something is to be done if no reply arrives."""
        elapsed_s = self._elapsed_s()
        if elapsed_s is None or elapsed_s < PATIENCE_S:
            wait_s = PATIENCE_S - (elapsed_s or 0.0)
        else:
            wait_s = min(self._inspection_pause_s, self._limits.timeout_s - elapsed_s)
        return max(wait_s, 0.001)

    def _elapsed_s(self) -> float | None:
        """Return the time since the process began its current items, or None before it has begun any."""
        since_ns = self._process.progress.since_ns
        return None if since_ns is None else (time.monotonic_ns() - since_ns) / 1e9

    def _settle(self, reply: dict[str, Any]) -> Scored:
        try:
            scored = read_verdicts(reply, len(self._items))
        except ProtocolError as error:
            raise ProcessFailedError(f"the verifier process sent {error}") from None
        for index, verdict in scored.verdicts:
            if item := self.outstanding.pop(index, None):
                item.settle(verdict)
                self.settled += 1
        if scored.done and self.outstanding:
            raise ProcessFailedError("the verifier process sent too few verdicts")
        return scored

    def _is_out_of_time(self) -> bool:
        """Give the items that a slow process has not begun to others. Return True if its current item is out of time.

        Raises:
            ProcessFailedError: if the process exceeds a limit.
        """
        elapsed_s = self._elapsed_s()
        if elapsed_s is None:
            if time.monotonic() > self._arrival_deadline:
                raise ProcessFailedError("the verifier process did not take its items in time")
            return False
        self._inspect(slow=elapsed_s >= PATIENCE_S)
        if elapsed_s < PATIENCE_S:
            return False
        running = self._process.progress.current
        self._process.progress.cut = running.stop
        self._put_back([self.outstanding.pop(i) for i in list(self.outstanding) if i not in running])
        if elapsed_s < self._limits.timeout_s:
            return False
        reason = f"no verdict within {self._limits.timeout_s:g} s (reward.verifier_timeout_s)"
        if len(self.outstanding) == 1:
            self._conclude(failed_verdict(reason, "limit"))
        else:  # scored in one call: one of them may be responsible
            self._suspect_all()
        return True

    def _inspect(self, slow: bool) -> None:
        """Look at the limits that the process does not enforce itself, from time to time."""
        now = time.monotonic()
        if not slow:
            self._inspection_pause_s = PATIENCE_S
        if now - self._inspected_at < (self._inspection_pause_s if slow else INSPECTION_PAUSE_S):
            return
        self._inspected_at = now
        if slow:
            self._inspection_pause_s = min(1.5 * self._inspection_pause_s, LONGEST_INSPECTION_PAUSE_S)
        if excess := self._process.excess():
            raise LimitExceededError(excess)

    def _handle_death(self, failure: ProcessFailedError) -> None:
        """Blame the item if it was alone for the second time; otherwise any of the items may be responsible."""
        if len(self.outstanding) == 1 and next(iter(self.outstanding.values())).alone:
            outcome: Outcome = "limit" if isinstance(failure, LimitExceededError) else "error"
            self._conclude(failed_verdict(str(failure), outcome))
        else:
            self._suspect_all()

    def _conclude(self, verdict: Verdict) -> None:
        _, item = self.outstanding.popitem()
        item.settle(verdict)
        self.settled += 1

    def _suspect_all(self) -> None:
        for item in self.outstanding.values():
            item.alone = True
        suspects = list(self.outstanding.values())
        self.outstanding.clear()
        self._put_back(suspects)
