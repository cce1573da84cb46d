"""Keeps one place in the rollout fleet filled: starts a process, has it serve, and starts another when it is lost.

    find a place and start the process ─▶ serve (rollout/fleet/worker_loop.py) ─▶ until it is drained, or lost
                 ▲                                                                               │
                 └── give its prompts back, wait, start anew ◀── any failure, or silence ────────┘

Nobody waits for a particular worker. A dead one holds up only its own prompts, and those go back to be leased by
the others.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

import ray

from cluster.core.deadlines import within
from cluster.runtime.placement import PlacementError
from rollout.fleet.context import FleetContext
from rollout.fleet.state import WorkerState
from rollout.fleet.worker_loop import WeightGapError, WorkerLoop

logger = logging.getLogger(__name__)

RESTART_DELAY_S = 2.0
"""Before a worker's first restart; doubled for each further one in a row."""
LONGEST_RESTART_DELAY_S = 60.0


class FleetLostError(RuntimeError):
    """No rollout worker is left, and none may be started any more."""


_WORKER_FAILURES = (ray.exceptions.RayError, TimeoutError, WeightGapError)
"""They cost the worker its process, and nobody else anything."""


class WorkerSupervisor:
    """The keeper of place `name`. `keep` runs as a task of its own until the place is given up."""

    def __init__(self, name: str, room: FleetContext) -> None:
        self._name = name
        self._room = room
        self._returned: list[str] = []
        """Ids of the prompts that the last process had when it ended."""

    @property
    def _process(self) -> str:
        """The name under which this place's present process holds leases."""
        return self._room.state[self._name].process

    async def keep(self) -> None:
        """Until the place is drained, or given up.

        Raises:
            FleetLostError: given up, and it was the last one.
        """
        room, name = self._room, self._name
        while True:
            reason: BaseException | None = None
            self._returned = []
            try:
                await self._run_process()
            except* _WORKER_FAILURES as failures:
                reason = first_cause(failures)
            if reason is None:
                room.state.drained(name)
                room.dispatch.announce()
                room.on_event(f"{name} has retired")
                return
            process = self._process
            after = room.state.lost(name)
            room.dispatch.announce(process)
            logger.warning("%s lost: %s; prompts to be sampled again: %s", name, reason, self._returned)
            fate = {WorkerState.DEAD: "given up", WorkerState.RETIRED: "retired"}.get(after, "restarted")
            room.on_event(
                f"{name} was lost ({_brief(reason)}); {len(self._returned)} prompts go to other workers; it is {fate}"
            )
            if after is WorkerState.DEAD and room.state.size == 0:
                raise FleetLostError(
                    f"all rollout workers are lost; the last one to {_brief(reason)}. "
                    f"Their logs: {room.places.run_directory.logs}"
                ) from reason
            if after is not WorkerState.RESTARTING:
                return
            await asyncio.sleep(restart_delay_s(room.state[name].failures))

    async def _run_process(self) -> None:
        """Start one worker process and serve with it until it is drained. It ends with this call, whatever happens."""
        room, name = self._room, self._name
        timeout_s = room.config.rollout.start_timeout_s
        async with AsyncExitStack() as stack:
            worker = await self._placed(stack)
            starting = worker.start.remote()
            try:
                room.process_ids[name] = await within(
                    timeout_s, starting, f"{name} to start (rollout.start_timeout_s)"
                )
                room.state.started(name)
                room.dispatch.announce(self._process)
                await WorkerLoop(name, self._process, worker, room).serve()
            finally:
                room.process_ids.pop(name, None)
                # Before anything else that takes time: others may have them.
                self._returned = room.dispatch.return_leases(self._process)
                # While it starts it does not listen, and has nothing to clear away.
                if ray.wait([starting], timeout=0)[0]:
                    await _shut_down(worker)

    async def _placed(self, stack: AsyncExitStack) -> ray.actor.ActorHandle:
        """A process, in a place that is held until `stack` ends.

        Raises:
            PlacementError: there is no room in time, and no other worker has any either.
        """
        room, name = self._room, self._name
        while True:
            try:
                worker = await stack.enter_async_context(room.places.worker(name))
            except PlacementError as error:
                if not room.placed:
                    raise
                room.on_event(f"{error}; the others go on without it, and it goes on asking")
            else:
                room.placed.add(name)
                stack.callback(room.placed.discard, name)
                return worker


def restart_delay_s(failures_in_a_row: int) -> float:
    """Before the next process of a place whose last ones, so many, came to nothing."""
    return min(RESTART_DELAY_S * 2.0 ** min(failures_in_a_row - 1, 10), LONGEST_RESTART_DELAY_S)


async def _shut_down(worker: ray.actor.ActorHandle) -> None:
    """Let the worker clear away its engine and its files, if it still can; it is killed afterwards in any case, and
    Ray kills what is left of its child processes."""
    try:
        async with asyncio.timeout(10):
            await worker.shut_down.remote()
    except (ray.exceptions.RayError, TimeoutError):
        logger.info("a rollout worker could not shut its engine down by itself")


def first_cause(error: BaseException) -> BaseException:
    """The first plain exception inside a group, or the exception itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _brief(error: BaseException) -> str:
    """The line of an error that says what happened; a remote traceback ends with it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
