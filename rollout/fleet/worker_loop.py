"""Keeps one worker process at work: brings it weights and prompts, takes its responses, and notices when it is useless.

    feed:    pull the current weights, lease prompts, submit them ─▶ …
    collect: take the responses that ended, have them judged ─▶ …

Both go on until the worker is drained, or an error says that it is lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import ray

from cluster.core.deadlines import within
from cluster.core.types import PolicyVersion, Prompt, Sampled
from rollout.fleet.context import FleetContext
from rollout.fleet.state import WorkerState
from rollout.fleet.weight_sync import Receiver, SupersededError

LONGEST_HEARTBEAT_S = 5.0
"""A worker without news says at least that, so often or more often."""
SHORTEST_GATHER_S = 0.05
"""So long a worker gathers responses before it hands them over, if more are to come: of small models a hundred end in
that time, and each answer costs more than a response."""
GATHER_S_PER_WORKER = 0.002
"""For each worker that there is, if that is longer: the controller takes five hundred answers a second, however many
workers there are. An engine that has nothing left to do hands over at once."""

REQUESTS_FOR_AN_EVEN_SHARE = 4
"""In at least so many requests a worker takes what would be its part of all that waits."""


class WeightGapError(RuntimeError):
    """A worker does not serve the weights that it was given."""


@dataclass(slots=True)
class _Held:
    """A prompt that the process has: how many responses are missing, and by when they must be there."""

    prompt: Prompt
    missing: int
    deadline: float


class WorkerLoop:
    """Of the process that holds leases under the name `process`, for place `name` of the fleet.

    Usage:
        await WorkerLoop("rollout-0", "rollout-0.3", worker, room).serve()   # until it is drained
    """

    def __init__(self, name: str, process: str, worker: ray.actor.ActorHandle, room: FleetContext) -> None:
        self._name = name
        self._process = process
        self._worker = worker
        self._room = room
        self._rollout = room.config.rollout
        self._held: dict[str, _Held] = {}
        self._receiver = Receiver(name, process, worker)
        self._missed: int | None = None
        """A weight version that the worker came too late for."""

    async def serve(self) -> None:
        """Until the place is to be drained, and the process holds nothing any more.

        Raises:
            RayError, TimeoutError, WeightGapError: in a group; the process is lost.
        """
        async with asyncio.TaskGroup() as loops:
            collecting = loops.create_task(self._collect())
            await self._feed()
            collecting.cancel()

    @property
    def _state(self) -> WorkerState:
        return self._room.state[self._name].state

    async def _feed(self) -> None:
        """Bring weights and prompts, until the place is to be drained and the process holds nothing any more."""
        room = self._room
        while True:
            policy, member = room.policy, room.state[self._name]
            if policy is not None and room.transport.expects(self._process, policy):
                await self._update(policy)
            elif member.state is WorkerState.DRAINING and not room.dispatch.leases(self._process):
                return
            elif member.state in (WorkerState.SUSPECT, WorkerState.DRAINING):
                await room.dispatch.news(self._process)
            elif policy is not None and policy.version not in (member.version, self._missed):
                await self._update(policy)
            elif member.state is WorkerState.HEALTHY and room.resting:
                await self._rest()
            elif member.state is WorkerState.HEALTHY and (prompts := self._lease()):
                await within(
                    self._rollout.request_timeout_s,
                    self._worker.submit.remote(prompts),
                    f"{self._name} to take prompts {', '.join(prompt.id for prompt in prompts)}",
                )
            else:
                await room.dispatch.news(self._process)

    async def _rest(self) -> None:
        """Until there is news."""
        room = self._room
        if self._process in room.asleep:
            await room.dispatch.news(self._process)
            return
        await within(
            self._rollout.update_timeout_s,
            self._worker.sleep.remote(),
            f"{self._name} to sleep (rollout.update_timeout_s)",
        )
        room.asleep.add(self._process)
        room.dispatch.announce()

    def _lease(self) -> list[Prompt]:
        held = self._room.dispatch.leases(self._process)
        request = prompts_in_a_request(
            self._room.dispatch.waiting_prompts,
            len(self._room.process_ids),
            self._rollout.prompts_per_request,
        )
        room = min(request, self._rollout.inflight_prompts_per_worker - held)
        version = self._room.state.current_version
        assert version is not None, "a worker is healthy only when it serves the current version"
        prompts = self._room.dispatch.lease(self._process, room, version)
        deadline = time.monotonic() + self._rollout.request_timeout_s
        self._held |= {prompt.id: _Held(prompt, prompt.sampling.responses, deadline) for prompt in prompts}
        return prompts

    async def _update(self, policy: PolicyVersion) -> None:
        try:
            gap = await self._room.transport.bring(self._receiver, policy)
        except SupersededError:
            self._missed = policy.version
            return
        limit = self._room.config.learner.max_logprob_gap
        if not gap <= limit:
            raise WeightGapError(
                f"with weight version {policy.version} {self._name} is {gap:.3g} away from the "
                f"learner's log-probabilities on the probe (learner.max_logprob_gap: {limit:g})"
            )
        self._room.probe_gaps.append(gap)
        if self._state is not WorkerState.DRAINING:
            self._room.state.pulled(self._name, policy.version)
        self._room.dispatch.announce(self._process)

    async def _collect(self) -> None:
        """Take what the worker has sampled, again and again.

        Raises:
            TimeoutError: nothing is heard of it, or a prompt takes too long.
        """
        room, name = self._room, self._name
        heartbeat_s = min(LONGEST_HEARTBEAT_S, self._rollout.silence_timeout_s / 4)
        while True:
            gather_s = max(SHORTEST_GATHER_S, GATHER_S_PER_WORKER * len(room.process_ids))
            sampled = await self._hear(self._worker.collect.remote(heartbeat_s, gather_s))
            if self._state is WorkerState.SUSPECT:
                room.state.heard(name)
                room.dispatch.announce(self._process)
            if sampled:
                room.state.served(name)
                room.judging.add(self._process, sampled, self._problems(sampled))
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
            return await within(
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


def prompts_in_a_request(waiting_prompts: int, workers: int, least: int) -> int:
    """How many prompts a worker asks for at once: `least`, and more where very many wait, for each request takes
    milliseconds. They get fewer as less is left, so that the last ones are spread evenly."""
    return max(least, waiting_prompts // (max(workers, 1) * REQUESTS_FOR_AN_EVEN_SHARE))
