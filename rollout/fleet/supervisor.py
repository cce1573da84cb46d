"""Keeps one member of the rollout fleet alive: starts its process, runs it, and starts another one when it is lost.

    reserve a slot, start the process ─▶ run the worker loop (worker_loop.py) ─▶ until it is drained or lost
                 ▲                                                                          │
                 └── return its prompts, wait, start again ◀── any failure, or silence ─────┘

No other task waits for a particular worker. A dead worker delays only its own prompts, which are returned and leased
by other workers.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

import ray

from cluster.core.actor import Actor
from cluster.core.deadlines import within
from cluster.core.errors import PlacementError
from rollout.engine.worker import RolloutWorker
from rollout.fleet.context import FleetContext
from rollout.fleet.state import WorkerState
from rollout.fleet.worker_loop import WeightGapError, WorkerLoop

logger = logging.getLogger(__name__)

RESTART_DELAY_S = 2.0
"""The delay before a worker's first restart. It doubles with each further failure in a row."""
LONGEST_RESTART_DELAY_S = 60.0
SHUT_DOWN_TIMEOUT_S = 10.0


class FleetLostError(RuntimeError):
    """No rollout worker is left, and none may be started any more."""


_WORKER_FAILURES = (ray.exceptions.RayError, TimeoutError, WeightGapError)
"""The failures that cost a worker its process, and nothing else."""


class WorkerSupervisor:
    """The supervisor of member `name`. `run` is a task of its own that ends when the member is retired or given up."""

    def __init__(self, name: str, context: FleetContext) -> None:
        self._name = name
        self._context = context
        self._returned: list[str] = []
        """The ids of the prompts that the last process held when it ended."""

    @property
    def _process(self) -> str:
        """The name under which this member's present process holds leases."""
        return self._context.state[self._name].process

    async def run(self) -> None:
        """Keep the member alive until it is drained or given up.

        Raises:
            FleetLostError: if it was given up, and it was the last one.
        """
        context, name = self._context, self._name
        while True:
            reason: BaseException | None = None
            self._returned = []
            try:
                await self._run_process()
            except* _WORKER_FAILURES as failures:
                reason = first_cause(failures)
            if reason is None:
                context.state.drained(name)
                context.scheduler.announce()
                context.on_event(f"{name} has retired")
                return
            if self._lose(reason) is not WorkerState.RESTARTING:
                return
            await asyncio.sleep(restart_delay_s(context.state[name].failures))

    def _lose(self, reason: BaseException) -> WorkerState:
        """Record that the process is lost, and report it. Return the member's new state.

        Raises:
            FleetLostError: if no member is left.
        """
        context, name = self._context, self._name
        process = self._process
        after = context.state.lost(name)
        context.scheduler.announce(process)
        logger.warning("%s lost: %s; prompts to be sampled again: %s", name, reason, self._returned)
        fate = {WorkerState.DEAD: "given up", WorkerState.RETIRED: "retired"}.get(after, "restarted")
        context.on_event(
            f"{name} was lost ({_brief(reason)}); {len(self._returned)} prompts go to other workers; it is {fate}"
        )
        if after is WorkerState.DEAD and context.state.size == 0:
            raise FleetLostError(
                f"all rollout workers are lost; the last one to {_brief(reason)}. "
                f"Their logs: {context.factory.logs}"
            ) from reason
        return after

    async def _run_process(self) -> None:
        """Start one worker process and run it until it is drained. The process ends with this call in any case."""
        context, name = self._context, self._name
        timeout_s = context.config.rollout.start_timeout_s
        async with AsyncExitStack() as stack:
            worker = await self._started(stack)
            starting = worker.call(RolloutWorker.start)
            try:
                process_id = await within(timeout_s, starting, f"{name} to start (rollout.start_timeout_s)")
                context.registry.started(name, process_id)
                context.state.started(name)
                context.scheduler.announce(self._process)
                await WorkerLoop(name, self._process, worker, context).run()
            finally:
                context.registry.ended(name, self._process)
                # Before anything that takes time, so that other workers can have the prompts.
                self._returned = context.scheduler.return_leases(self._process)
                # While it starts, the worker does not answer calls, and has nothing to clean up.
                if ray.wait([starting], timeout=0)[0]:
                    await _shut_down(worker)

    async def _started(self, stack: AsyncExitStack) -> Actor[RolloutWorker]:
        """Return a process in a slot that is held until `stack` ends.

        Raises:
            PlacementError: if there is no slot in time, and no other member has one either.
        """
        context, name = self._context, self._name
        while True:
            try:
                worker = await stack.enter_async_context(context.factory.worker(name))
            except PlacementError as error:
                if not context.registry.any_slot:
                    raise
                context.on_event(f"{error}; the run continues without {name}, which keeps asking for a slot")
            else:
                context.registry.slot_reserved(name)
                stack.callback(context.registry.slot_released, name)
                return worker


def restart_delay_s(failures_in_a_row: int) -> float:
    """Return the delay before the next process of a member whose last processes failed."""
    return min(RESTART_DELAY_S * 2.0 ** min(failures_in_a_row - 1, 10), LONGEST_RESTART_DELAY_S)


async def _shut_down(worker: Actor[RolloutWorker]) -> None:
    """Let the worker remove its engine and its files, if it still can. It is killed afterwards in any case, and Ray
    kills its remaining child processes."""
    try:
        async with asyncio.timeout(SHUT_DOWN_TIMEOUT_S):
            await worker.call(RolloutWorker.shut_down)
    except (ray.exceptions.RayError, TimeoutError):
        logger.info("a rollout worker could not shut its engine down by itself")


def first_cause(error: BaseException) -> BaseException:
    """Return the first plain exception inside a group, or the exception itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _brief(error: BaseException) -> str:
    """Return the line of an error that says what happened. In a remote traceback it is the last one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
