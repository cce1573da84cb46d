"""The rollout fleet: keeps the workers alive, current and busy. The Ray shell around `rollout/fleet_state.py`.

Each worker has one keeper task:

    start the process ─▶ pull the current weights ─▶ lease prompts, send requests ─▶ …
         ▲                    ▲ whenever a version is published        │
         └── give leases back, wait, start anew ◀── any failure ───────┘

Nobody waits for a particular worker. A dead one holds up only its own prompts, and those go back to be leased by
the others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from cluster.config import RunConfig
from cluster.contracts import Group, Prompt, Publication, ScoredGroup
from cluster.placement import Reservation, bundle, cpu_environment
from cluster.run_directory import RunDirectory
from reward.scoring import RewardPool
from rollout.fleet_state import FleetState, WorkerState
from rollout.work_buffer import WorkBuffer
from rollout.worker import EngineOptions, RolloutWorker

logger = logging.getLogger(__name__)

RESTART_DELAY_S = 2.0
"""Before a worker's first restart; doubled for each further one."""


class FleetLostError(RuntimeError):
    """No rollout worker is left, and none may be started any more."""


class WeightGapError(RuntimeError):
    """A worker does not serve the weights that it was given."""


_WORKER_FAILURES = (ray.exceptions.RayError, TimeoutError, WeightGapError)


class RolloutFleet:
    """N rollout workers that empty work buffers.

    Usage:
        fleet = RolloutFleet(config, options, run_directory, rewards, on_event)
        fleet.start(background)              # an asyncio.TaskGroup: a fatal failure ends the run
        fleet.publish(publication)           # from now on prompts are sampled under these weights, or, without a
        fleet.serve_as_loaded()              # learner, under those that each worker has loaded
        fleet.feed(buffer)                   # keep working on what is admitted to `buffer`
        await fleet.wait_until(lambda: buffer.scored_groups >= 32)
        scored = await fleet.sample(prompts) # on the side, first in line: an evaluation
    """

    def __init__(
        self,
        config: RunConfig,
        options: EngineOptions,
        run_directory: RunDirectory,
        rewards: RewardPool,
        on_event: Callable[[str], None],
    ) -> None:
        rollout = config.rollout
        self._config = config
        self._rollout = rollout
        self._options = options
        self._run_directory = run_directory
        self._rewards = rewards
        self._on_event = on_event
        names = [f"rollout-{index}" for index in range(rollout.workers)]
        self.state = FleetState(names, rollout.restarts_per_worker)
        self.process_ids: dict[str, int] = {}
        self._probe_gaps: list[float] = []
        self.sampled_tokens = 0
        self._buffers: list[WorkBuffer] = []
        self._publication: Publication | None = None
        self._news = asyncio.Event()
        self._background: asyncio.TaskGroup | None = None
        self._keepers: list[asyncio.Task[None]] = []

    def start(self, background: asyncio.TaskGroup) -> None:
        """Start all workers; returns at once."""
        self._background = background
        self._keepers = [background.create_task(self._keep(member.name)) for member in self.state.members]

    async def stop(self) -> None:
        """End all workers and give their resources back."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def publish(self, publication: Publication) -> None:
        """Make `publication` the version to serve. The one before is let go, and its memory with it."""
        self._publication = publication
        self.state.published(publication.version)
        self._announce()

    def serve_as_loaded(self) -> None:
        """Serve the model as each worker loads it. There is no learner then, and nothing to pull."""
        self.state.serve_as_loaded()
        self._announce()

    def feed(self, buffer: WorkBuffer) -> None:
        """Work on what is waiting in `buffer`, now and later. Call again after admitting prompts."""
        if buffer not in self._buffers:
            self._buffers.append(buffer)
        self._announce()

    async def sample(self, prompts: Sequence[Prompt]) -> list[ScoredGroup]:
        """Sample and score `prompts`, before anything else that waits."""
        buffer = WorkBuffer(capacity=len(prompts))
        for prompt in prompts:
            buffer.admit(prompt)
        self._buffers.insert(0, buffer)
        self._announce()
        await self.wait_until(lambda: buffer.scored_groups == len(prompts))
        self._buffers.remove(buffer)
        return buffer.take_batch(len(prompts))

    def take_probe_gap(self) -> float:
        """Largest |Δ log p| on the probe in all pulls since the last call; 0 if there was none."""
        gaps, self._probe_gaps = self._probe_gaps, []
        return max(gaps, default=0.0)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds; it is looked at whenever something happened in the fleet.

        There is no deadline here, since every request has one: it ends in a group, or in a worker's replacement,
        or in the end of the run.
        """
        while not condition():
            self._news.clear()
            await self._news.wait()

    def _announce(self) -> None:
        self._news.set()

    async def _keep(self, name: str) -> None:
        """Keep one place in the fleet filled until it is given up."""
        while True:
            reason: BaseException = RuntimeError("its task ended")
            try:
                await self._run_worker(name)
            except* _WORKER_FAILURES as failures:
                reason = first_cause(failures)
            returned = [prompt_id for buffer in self._buffers for prompt_id in buffer.return_leases(name)]
            state = self.state.lost(name)
            self._announce()
            logger.warning("%s lost: %s; prompts to be sampled again: %s", name, reason, returned)
            self._on_event(
                f"{name} was lost ({_brief(reason)}); {len(returned)} prompts go to other workers; "
                f"it is {'given up' if state is WorkerState.DEAD else 'restarted'}"
            )
            if state is WorkerState.DEAD:
                if self.state.alive == 0:
                    raise FleetLostError(
                        f"all rollout workers are lost; the last one to {_brief(reason)}. "
                        f"Their logs: {self._run_directory.logs}"
                    ) from reason
                return
            await asyncio.sleep(RESTART_DELAY_S * 2 ** (self.state[name].incarnation - 1))

    async def _run_worker(self, name: str) -> None:
        """Start one worker process and serve with it until it fails."""
        rollout = self._rollout
        on_gpu = rollout.gpus_per_worker > 0
        bundles = [bundle(rollout.cpus_per_worker, rollout.gpus_per_worker)]
        async with Reservation(name, bundles, self._config.cluster.placement_timeout_s) as place:
            worker = place.actor(
                RolloutWorker,
                name,
                self._options,
                bundle=0,
                log_file=self._run_directory.log_file(name),
                env=cpu_environment(rollout.threads_per_worker, on_gpu),
                max_concurrency=1000,
            )
            starting = worker.start.remote()
            try:
                self.process_ids[name] = await _within(
                    rollout.start_timeout_s, starting, f"{name} to start (rollout.start_timeout_s)"
                )
                self.state.started(name)
                self._announce()
                async with asyncio.TaskGroup() as requests:
                    await self._serve(name, worker, requests)
            finally:
                self.process_ids.pop(name, None)
                # While it starts it does not listen, and has nothing to clear away.
                if ray.wait([starting], timeout=0)[0]:
                    await _shut_down(worker)

    async def _serve(self, name: str, worker: ray.actor.ActorHandle, requests: asyncio.TaskGroup) -> None:
        while True:
            publication, member = self._publication, self.state[name]
            if publication is not None and member.version != publication.version:
                await self._pull(name, worker, publication)
            elif member.state is WorkerState.HEALTHY and (prompts := self._lease(name)):
                requests.create_task(self._request(name, worker, prompts))
                await asyncio.sleep(0)  # the others lease in turn, so that a small batch is spread evenly
            else:
                self._news.clear()
                await self._news.wait()

    def _lease(self, name: str) -> list[Prompt]:
        leased = sum(buffer.leases(name) for buffer in self._buffers)
        room = min(self._rollout.prompts_per_request, self._rollout.inflight_prompts_per_worker - leased)
        for buffer in self._buffers:
            if room > 0 and buffer.waiting_prompts:
                return buffer.lease(name, room)
        return []

    async def _pull(self, name: str, worker: ray.actor.ActorHandle, publication: Publication) -> None:
        gap = await _within(
            self._rollout.update_timeout_s,
            worker.pull_weights.remote(publication),
            f"{name} to pull weight version {publication.version} (rollout.update_timeout_s)",
        )
        limit = self._config.learner.max_logprob_gap
        if not gap <= limit:
            raise WeightGapError(
                f"after pulling weight version {publication.version}, {name} is {gap:.3g} away from the learner's "
                f"log-probabilities on the probe (learner.max_logprob_gap: {limit:g})"
            )
        self._probe_gaps.append(gap)
        self.state.pulled(name, publication.version)
        self._announce()

    async def _request(self, name: str, worker: ray.actor.ActorHandle, prompts: list[Prompt]) -> None:
        groups: list[Group] = await _within(
            self._rollout.request_timeout_s,
            worker.generate.remote(prompts),
            f"{name} to sample prompts {', '.join(p.id for p in prompts)} (rollout.request_timeout_s)",
        )
        assert self._background is not None
        for group in groups:
            # Not among the worker's requests: a failing verifier is not the worker's failure.
            self._background.create_task(self._score(group))

    async def _score(self, group: Group) -> None:
        scored = await self._rewards.score(group)
        # If the lease was taken back meanwhile, another worker's copy counts, and this one is forgotten.
        if any(buffer.complete(scored) for buffer in self._buffers):
            self.sampled_tokens += sum(len(response.token_ids) for response in group.responses)
        self._announce()


async def _within(timeout_s: float, reference: Any, what: str) -> Any:
    started = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            return await reference
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
