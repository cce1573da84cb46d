"""Keeps one place in the rollout fleet filled: starts a process, brings it weights and prompts, takes its responses,
and starts another when it is lost.

    place and start the process ─▶ feed:    pull the current weights, lease prompts, submit them ─▶ …   until it is
         ▲                         collect: take the responses that ended, have them judged ─▶ …        drained or lost
         └── give leases back, wait, start anew ◀── any failure, or silence ──────────────────┘

Nobody waits for a particular worker. A dead one holds up only its own prompts, and those go back to be leased by
the others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import ray

from cluster.config import RunConfig
from cluster.contracts import Prompt, Publication, Sampled
from cluster.dispatch import Dispatch
from cluster.placement import PlacementError
from cluster.worker_places import WorkerPlaces
from reward.scoring import Judgeable, RewardPool
from rollout.fleet_state import FleetState, WorkerState

logger = logging.getLogger(__name__)

RESTART_DELAY_S = 2.0
"""Before a worker's first restart; doubled for each further one in a row."""
LONGEST_RESTART_DELAY_S = 60.0
LONGEST_HEARTBEAT_S = 5.0
"""A worker without news says at least that, so often or more often."""


class FleetLostError(RuntimeError):
    """No rollout worker is left, and none may be started any more."""


class WeightGapError(RuntimeError):
    """A worker does not serve the weights that it was given."""


_WORKER_FAILURES = (ray.exceptions.RayError, TimeoutError, WeightGapError)
"""They cost the worker its process, and nobody else anything."""


@dataclass(slots=True)
class FleetRoom:
    """What the keepers of one fleet share."""

    config: RunConfig
    places: WorkerPlaces
    rewards: RewardPool
    on_event: Callable[[str], None]
    state: FleetState
    dispatch: Dispatch
    background: asyncio.TaskGroup
    publication: Publication | None = None
    placed: set[str] = field(default_factory=set)
    """Names of those that have a place in the cluster."""
    probe_gaps: list[float] = field(default_factory=list)
    process_ids: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Held:
    """A prompt that the process has: how many responses are missing, and by when they must be there."""

    prompt: Prompt
    missing: int
    deadline: float


class WorkerKeeper:
    """The keeper of place `name`. `keep` runs as a task of its own until the place is given up."""

    def __init__(self, name: str, room: FleetRoom) -> None:
        self._name = name
        self._room = room
        self._rollout = room.config.rollout
        self._held: dict[str, _Held] = {}

    @property
    def _process(self) -> str:
        """The name under which this place's present process holds leases."""
        return f"{self._name}.{self._room.state[self._name].incarnation}"

    @property
    def _state(self) -> WorkerState:
        return self._room.state[self._name].state

    async def keep(self) -> None:
        """Until the place is drained, or given up.

        Raises:
            FleetLostError: given up, and it was the last one.
        """
        room, name = self._room, self._name
        while True:
            reason: BaseException | None = None
            try:
                await self._run_process()
            except* _WORKER_FAILURES as failures:
                reason = first_cause(failures)
            returned = room.dispatch.return_leases(self._process)
            self._held.clear()
            if reason is None:
                room.state.drained(name)
                room.dispatch.announce()
                room.on_event(f"{name} has retired")
                return
            process = self._process
            after = room.state.lost(name)
            room.dispatch.announce(process)
            logger.warning("%s lost: %s; prompts to be sampled again: %s", name, reason, returned)
            fate = {WorkerState.DEAD: "given up", WorkerState.RETIRED: "retired"}.get(after, "restarted")
            room.on_event(
                f"{name} was lost ({_brief(reason)}); {len(returned)} prompts go to other workers; it is {fate}"
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
        room, name, rollout = self._room, self._name, self._rollout
        async with AsyncExitStack() as stack:
            worker = await self._placed(stack)
            starting = worker.start.remote()
            try:
                room.process_ids[name] = await _within(
                    rollout.start_timeout_s, starting, f"{name} to start (rollout.start_timeout_s)"
                )
                room.state.started(name)
                room.dispatch.announce(self._process)
                async with asyncio.TaskGroup() as loops:
                    collecting = loops.create_task(self._collect(worker))
                    await self._feed(worker)
                    collecting.cancel()
            finally:
                room.process_ids.pop(name, None)
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

    async def _feed(self, worker: ray.actor.ActorHandle) -> None:
        """Bring weights and prompts, until the place is to be drained and the process holds nothing any more."""
        room = self._room
        while True:
            publication, member = room.publication, room.state[self._name]
            if member.state is WorkerState.DRAINING and not room.dispatch.leases(self._process):
                return
            if member.state in (WorkerState.SUSPECT, WorkerState.DRAINING):
                await room.dispatch.news(self._process)
            elif publication is not None and member.version != publication.version:
                await self._pull(worker, publication)
            elif member.state is WorkerState.HEALTHY and (prompts := self._lease()):
                await _within(
                    self._rollout.request_timeout_s,
                    worker.submit.remote(prompts),
                    f"{self._name} to take prompts {', '.join(prompt.id for prompt in prompts)}",
                )
            else:
                await room.dispatch.news(self._process)

    def _lease(self) -> list[Prompt]:
        held = self._room.dispatch.leases(self._process)
        room = min(self._rollout.prompts_per_request, self._rollout.inflight_prompts_per_worker - held)
        version = self._room.state.current_version
        assert version is not None, "a worker is healthy only when it serves the current version"
        prompts = self._room.dispatch.lease(self._process, room, version)
        deadline = time.monotonic() + self._rollout.request_timeout_s
        self._held |= {prompt.id: _Held(prompt, prompt.sampling.responses, deadline) for prompt in prompts}
        return prompts

    async def _pull(self, worker: ray.actor.ActorHandle, publication: Publication) -> None:
        gap = await _within(
            self._rollout.update_timeout_s,
            worker.pull_weights.remote(publication),
            f"{self._name} to pull weight version {publication.version} (rollout.update_timeout_s)",
        )
        limit = self._room.config.learner.max_logprob_gap
        if not gap <= limit:
            raise WeightGapError(
                f"after pulling weight version {publication.version}, {self._name} is {gap:.3g} away from the "
                f"learner's log-probabilities on the probe (learner.max_logprob_gap: {limit:g})"
            )
        self._room.probe_gaps.append(gap)
        if self._state is not WorkerState.DRAINING:
            self._room.state.pulled(self._name, publication.version)
        self._room.dispatch.announce(self._process)

    async def _collect(self, worker: ray.actor.ActorHandle) -> None:
        """Take what the worker has sampled, again and again.

        Raises:
            TimeoutError: nothing is heard of it, or a prompt takes too long.
        """
        room, name = self._room, self._name
        heartbeat_s = min(LONGEST_HEARTBEAT_S, self._rollout.silence_timeout_s / 4)
        while True:
            sampled = await self._hear(worker.collect.remote(heartbeat_s))
            if self._state is WorkerState.SUSPECT:
                room.state.heard(name)
                room.dispatch.announce(self._process)
            if sampled:
                room.state.served(name)
                # Not a task of this worker's: a failing verifier is not the worker's failure.
                room.background.create_task(self._judge(self._process, sampled, self._problems(sampled)))
            self._refuse_overdue()

    async def _hear(self, answer: Any) -> list[Sampled]:
        """The worker's answer. On the way to the deadline it is suspected, and leases nothing more."""
        timeout_s = self._rollout.silence_timeout_s
        answer = asyncio.ensure_future(answer)
        try:
            done, _ = await asyncio.wait({answer}, timeout=timeout_s / 2)
            if not done and self._state in (WorkerState.STALE, WorkerState.HEALTHY):
                self._room.state.silent(self._name)
                self._room.dispatch.announce(self._process)
                self._room.on_event(f"nothing heard of {self._name} for {timeout_s / 2:g} s")
            return await _within(
                timeout_s / 2, answer, f"any sign of life of {self._name} (rollout.silence_timeout_s)"
            )
        finally:
            answer.cancel()

    def _problems(self, sampled: Sequence[Sampled]) -> list[Any]:
        """What was asked. A prompt whose last response this is, is held no longer."""
        problems = []
        for one in sampled:
            held = self._held[one.prompt_id]
            problems.append(held.prompt.problem)
            held.missing -= 1
            if not held.missing:
                del self._held[one.prompt_id]
        return problems

    async def _judge(self, process: str, sampled: Sequence[Sampled], problems: Sequence[Any]) -> None:
        answers = [
            Judgeable(problem, one.response.text, one.response.finish_reason)
            for one, problem in zip(sampled, problems, strict=True)
        ]
        async for placed in self._room.rewards.judge(answers):
            self._room.dispatch.deliver(
                process, [sampled[place] for place, _ in placed], [verdict for _, verdict in placed]
            )

    def _refuse_overdue(self) -> None:
        now = time.monotonic()  # those that were leased first are due first
        overdue = [
            held.prompt.id for held in takewhile(lambda held: held.deadline < now, self._held.values())
        ]
        if overdue:
            raise TimeoutError(
                f"{self._name} did not answer prompts {', '.join(overdue)} within "
                f"{self._rollout.request_timeout_s:g} s (rollout.request_timeout_s)"
            )


def restart_delay_s(failures_in_a_row: int) -> float:
    """Before the next process of a place whose last ones, so many, came to nothing."""
    return min(RESTART_DELAY_S * 2.0 ** min(failures_in_a_row - 1, 10), LONGEST_RESTART_DELAY_S)


async def _within(timeout_s: float, awaitable: Any, what: str) -> Any:
    started = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            return await awaitable
    except TimeoutError:
        waited_s = time.monotonic() - started
        raise TimeoutError(f"waited {waited_s:.0f} s for {what}") from None


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
