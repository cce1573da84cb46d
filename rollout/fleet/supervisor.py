"""One member of the rollout fleet: the supervisor of its processes, and the loop around the present one.

    reserve a slot, start the process ─▶ WorkerLoop.run ─▶ until it is drained or lost
                 ▲                                                    │
                 └── return its prompts, wait, start again ◀── any failure, or silence

    WorkerLoop   feed:    update to the current policy version, lease prompts, submit them ─▶ …
                 collect: take the responses that ended, have them scored ─▶ …

No other task waits for a particular worker. A dead worker delays only its own prompts, which are returned and leased
by other workers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import ray

from cluster.core.actor import Actor
from cluster.core.deadlines import within
from cluster.core.errors import PlacementError
from cluster.core.types import PolicyVersion, Prompt, Sampled
from cluster.core.weight_transport import SupersededError, UpdateTarget
from rollout.engine.worker import RolloutWorker
from rollout.fleet.context import FleetContext
from rollout.fleet.silence import SilenceClock
from rollout.fleet.state import WorkerState

logger = logging.getLogger(__name__)

RESTART_DELAY_S = 2.0
"""The delay before a worker's first restart. It doubles with each further failure in a row."""
LONGEST_RESTART_DELAY_S = 60.0
SHUT_DOWN_TIMEOUT_S = 10.0
LONGEST_HEARTBEAT_S = 5.0
"""A worker without responses answers at least this often."""
SHORTEST_GATHER_S = 0.05
"""A worker gathers responses for this long before it hands them over, if more are to come. With small models a hundred
responses end in that time, and each answer costs more than a response."""
GATHER_S_PER_WORKER = 0.002
"""The gathering time per worker, if that is longer: the controller can take five hundred answers a second, however many
workers there are. An engine that has nothing left to do hands over at once."""
REQUESTS_FOR_AN_EVEN_SHARE = 4
"""A worker takes its even part of all waiting prompts in at least this many requests."""


class FleetLostError(RuntimeError):
    """No rollout worker is left, and none may be started any more."""


class WeightGapError(RuntimeError):
    """A worker does not serve the weights that it was given."""


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


@dataclass(slots=True)
class _Held:
    """A prompt that the process holds."""

    prompt: Prompt
    missing: int
    """The number of responses that are still to come."""
    deadline: float


class WorkerLoop:
    """The loop of the process that holds leases under the name `process`, for member `name` of the fleet.

    Usage:
        await WorkerLoop("rollout-0", "rollout-0.3", worker, context).run()   # until it is drained
    """

    def __init__(self, name: str, process: str, worker: Actor[RolloutWorker], context: FleetContext) -> None:
        self._name = name
        self._process = process
        self._worker = worker
        self._context = context
        self._rollout = context.config.rollout
        self._held: dict[str, _Held] = {}
        self._target = UpdateTarget(name, process, worker)
        self._missed: int | None = None
        """A policy version that the worker came too late for."""
        self._silence = SilenceClock(self._rollout.silence_timeout_s, self._rollout.update_timeout_s)

    async def run(self) -> None:
        """Serve until the member is drained and the process holds no prompts.

        Raises:
            RayError, TimeoutError, WeightGapError: in a group, if the process is lost.
        """
        async with asyncio.TaskGroup() as loops:
            collecting = loops.create_task(self._collect())
            await self._feed()
            collecting.cancel()

    @property
    def _state(self) -> WorkerState:
        return self._context.state[self._name].state

    async def _feed(self) -> None:
        """Bring weights and prompts until the member is drained and the process holds no prompts."""
        context = self._context
        while True:
            version, member = context.policy.version, context.state[self._name]
            if version is not None and context.coordinator.expects(self._process, version):
                await self._update(version)
            elif member.state is WorkerState.DRAINING and not context.scheduler.leases(self._process):
                return
            elif member.state in (WorkerState.SUSPECT, WorkerState.DRAINING):
                await context.scheduler.news(self._process)
            elif version is not None and version.version not in (member.version, self._missed):
                await self._update(version)
            elif member.state is WorkerState.HEALTHY and context.policy.resting:
                await self._rest()
            elif member.state is WorkerState.HEALTHY and (prompts := self._lease()):
                await within(
                    self._rollout.request_timeout_s,
                    self._worker.call(RolloutWorker.submit, prompts),
                    f"{self._name} to take prompts {', '.join(prompt.id for prompt in prompts)}",
                )
            else:
                await context.scheduler.news(self._process)

    async def _rest(self) -> None:
        """Put the engine to sleep; if it sleeps already, wait for news."""
        context = self._context
        if self._process in context.registry.asleep:
            await context.scheduler.news(self._process)
            return
        with self._silence.update():
            await within(
                self._rollout.update_timeout_s,
                self._worker.call(RolloutWorker.sleep),
                f"{self._name} to sleep (rollout.update_timeout_s)",
            )
        context.registry.fell_asleep(self._process)
        context.scheduler.announce()

    def _lease(self) -> list[Prompt]:
        scheduler = self._context.scheduler
        request = prompts_in_a_request(
            scheduler.waiting_prompts,
            len(self._context.registry.process_ids),
            self._rollout.prompts_per_request,
        )
        limit = min(request, self._rollout.inflight_prompts_per_worker - scheduler.leases(self._process))
        version = self._context.state.current_version
        assert version is not None, "a worker is healthy only when it serves the current version"
        prompts = scheduler.lease(self._process, limit, version)
        deadline = time.monotonic() + self._rollout.request_timeout_s
        self._held |= {prompt.id: _Held(prompt, prompt.sampling.responses, deadline) for prompt in prompts}
        return prompts

    async def _update(self, version: PolicyVersion) -> None:
        context = self._context
        try:
            with self._silence.update():
                gap = await context.coordinator.bring(self._target, version)
        except SupersededError:
            self._missed = version.version
            return
        limits = context.config.logprob_gap_limits
        if gap.exceeds(limits):
            raise WeightGapError(
                f"with weight version {version.version} {self._name} is {gap.mean:.3g} on average and "
                f"{gap.largest:.3g} at most away from the learner's log-probabilities on the probe "
                f"(learner.max_logprob_gap: {limits.mean:g} on average, {limits.largest:g} at most)"
            )
        context.registry.updated(self._process, gap.largest)
        if self._state is not WorkerState.DRAINING:
            context.state.pulled(self._name, version.version)
        context.scheduler.announce(self._process)

    async def _collect(self) -> None:
        """Take the responses of the worker, again and again.

        Raises:
            TimeoutError: if the worker does not answer, or a prompt takes too long.
        """
        context, name = self._context, self._name
        heartbeat_s = min(LONGEST_HEARTBEAT_S, self._rollout.silence_timeout_s / 4)
        while True:
            gather_s = max(SHORTEST_GATHER_S, GATHER_S_PER_WORKER * len(context.registry.process_ids))
            sampled = await self._hear(self._worker.call(RolloutWorker.collect, heartbeat_s, gather_s))
            if self._state is WorkerState.SUSPECT:
                context.state.heard(name)
                context.scheduler.announce(self._process)
            if sampled:
                context.state.served(name)
                context.scoring.add(self._process, sampled, self._problems(sampled))
            self._refuse_overdue()

    async def _hear(self, call: Awaitable[list[Sampled]]) -> list[Sampled]:
        """Return the worker's answer. After half of the deadline the worker is suspected, and leases no prompts.

        Raises:
            TimeoutError: if there is no answer in time.
        """
        answer, asked_at = asyncio.ensure_future(call), time.monotonic()
        try:
            suspicious = not await self._silence.answered(answer, asked_at, fraction=0.5)
            if suspicious and self._state in (WorkerState.STALE, WorkerState.HEALTHY):
                self._context.state.silent(self._name)
                self._context.scheduler.announce(self._process)
                silent_s = time.monotonic() - asked_at
                self._context.on_event(f"{self._name} has not answered for {silent_s:.1f} s")
            if not await self._silence.answered(answer, asked_at):
                raise TimeoutError(
                    f"waited {time.monotonic() - asked_at:.0f} s for any sign of life of {self._name} "
                    f"({self._silence.limit})"
                )
            return answer.result()
        finally:
            answer.cancel()

    def _problems(self, sampled: Sequence[Sampled]) -> list[Any]:
        """Return the problems that the responses answer. A prompt whose last response this is, is held no longer."""
        problems = []
        for response in sampled:
            held = self._held[response.prompt_id]
            problems.append(held.prompt.problem)
            held.missing -= 1
            if not held.missing:
                del self._held[response.prompt_id]
        return problems

    def _refuse_overdue(self) -> None:
        now = time.monotonic()  # the prompts that were leased first are due first
        overdue = [
            held.prompt.id for held in takewhile(lambda held: held.deadline < now, self._held.values())
        ]
        if overdue:
            raise TimeoutError(
                f"{self._name} did not answer prompts {', '.join(overdue)} within "
                f"{self._rollout.request_timeout_s:g} s (rollout.request_timeout_s)"
            )


def prompts_in_a_request(waiting_prompts: int, workers: int, least: int) -> int:
    """Return how many prompts a worker asks for at once: `least`, or more if very many wait, since each request takes
    milliseconds. Requests become smaller as fewer prompts are left, so that the last ones are spread evenly."""
    return max(least, waiting_prompts // (max(workers, 1) * REQUESTS_FOR_AN_EVEN_SHARE))
