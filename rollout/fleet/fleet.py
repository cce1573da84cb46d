"""The rollout fleet: its workers, the policy version that they serve, and the prompts that they work on.

Membership is `state.py`, each member's life is `supervisor.py`, work is `scheduler.py`; the
services that they share are in `context.py`. Here they are put together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from cluster.core.config import RunConfig
from cluster.core.protocols import ResponseScorer
from cluster.core.types import PolicyVersion, Prompt, ScoredGroup
from cluster.core.weight_transport import WeightCoordinator
from rollout.fleet.autoscaler import Autoscaler
from rollout.fleet.buffer import WorkBuffer
from rollout.fleet.context import FleetContext, ServedPolicy, WorkerFactory, WorkerRegistry
from rollout.fleet.scheduler import Scheduler, ScoringQueue
from rollout.fleet.state import FleetState, Resizing, WorkerState, refuse_size
from rollout.fleet.supervisor import WorkerSupervisor


class RolloutFleet:
    """N rollout workers that sample and score the prompts of work buffers.

    Usage:
        async with asyncio.TaskGroup() as background:   # a fatal failure ends the block
            fleet = RolloutFleet(config, factory, scorer, coordinator, on_event, background)
            await fleet.publish(version)         # from now on prompts are sampled under these weights; or, without a
            fleet.serve_as_loaded()              # learner, under the weights that each worker has loaded
            fleet.feed(buffer)                   # keep working on the prompts that are admitted to `buffer`
            await fleet.wait_until(lambda: buffer.scored_groups >= 32)
            scored = await fleet.sample(prompts) # beside that, and first in line: an evaluation
            fleet.resize(4)                      # at any time
            await fleet.stop()
    """

    def __init__(
        self,
        config: RunConfig,
        factory: WorkerFactory,
        scorer: ResponseScorer,
        coordinator: WeightCoordinator,
        on_event: Callable[[str], None],
        background: asyncio.TaskGroup,
    ) -> None:
        rollout = config.rollout
        self.state = FleetState(rollout.workers, rollout.max_consecutive_failures)
        self._scheduler = Scheduler()
        self._policy = ServedPolicy()
        self._registry = WorkerRegistry()
        self._context = FleetContext(
            config=config,
            factory=factory,
            scheduler=self._scheduler,
            scoring=ScoringQueue(scorer, self._scheduler, background),
            coordinator=coordinator,
            state=self.state,
            policy=self._policy,
            registry=self._registry,
            on_event=on_event,
            background=background,
        )
        self._supervisors: dict[str, asyncio.Task[None]] = {}
        self._autoscaler = (
            Autoscaler(rollout.min_workers, rollout.max_workers) if rollout.max_workers else None
        )
        self._start_supervisors([member.name for member in self.state.members])

    async def stop(self) -> None:
        """End all workers and release their resources."""
        for supervisor in self._supervisors.values():
            supervisor.cancel()
        await asyncio.gather(*self._supervisors.values(), return_exceptions=True)

    def resize(self, workers: int) -> Resizing:
        """Change the number of workers, and return at once. New workers start and update to the current version.
        Workers that are to go first finish the prompts that they hold.

        Raises:
            ValueError: as in `refuse_size`, or if `workers` is outside of the autoscaler's range.
        """
        refuse_size(workers)
        if self._autoscaler is not None:
            self._autoscaler.refuse_outside(workers)
        change = self.state.resize(workers)
        self._start_supervisors(change.added)
        for name in change.drained:
            if self.state[name].state is WorkerState.RETIRED:  # it held no prompts yet
                self._supervisors[name].cancel()
        self._scheduler.announce()
        return change

    def adapt_size(self, waited_s: float, step_s: float) -> None:
        """After a step in which the learner waited for samples for `waited_s` of `step_s`: let the autoscaler, if there
        is one, change the size."""
        if self._autoscaler is None:
            return
        workers, up = self.state.size, self.state.started_workers
        wanted = self._autoscaler.wanted(workers, waited_s, step_s, all_up=up == workers)
        if wanted != workers:
            self.resize(wanted)
            self._context.on_event(
                f"rollout workers: {workers} → {wanted}; the learner waited for samples for {waited_s / step_s:.0%} "
                "of a step"
            )

    async def publish(self, version: PolicyVersion) -> None:
        """Make `version` the one to serve, and release the one before. Return when the learner may change its weights
        again; this does not wait until workers serve the version."""
        serving = self.state.healthy_processes
        late = self.state.count({WorkerState.STALE, WorkerState.SUSPECT}) > 0
        self._policy.publish(version)
        self.state.published(version.version)
        self._scheduler.announce()
        await self._context.coordinator.hand_out(version, serving, late)

    async def rest(self) -> None:
        """If `rollout.sleep_while_learning` is set: put the engines to sleep until a version is published. Return when
        all of them sleep."""
        if not self._context.config.rollout.sleep_while_learning:
            return
        self._policy.rest()
        self._scheduler.announce()
        await self.wait_until(lambda: self.asleep.issuperset(self.state.healthy_processes))

    def serve_as_loaded(self) -> None:
        """Serve the model as each worker loads it, for runs without a learner."""
        self.state.serve_as_loaded()
        self._scheduler.announce()

    def feed(self, buffer: WorkBuffer) -> None:
        """Work on the prompts that wait in `buffer`, now and later. Call it again after each admission or extension."""
        self._scheduler.feed(buffer)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds. It is evaluated whenever something happened in the fleet."""
        await self._scheduler.wait_until(condition)

    async def sample(self, prompts: Sequence[Prompt]) -> list[ScoredGroup]:
        """Sample and score `prompts` before all other waiting prompts. Return their groups."""
        buffer = WorkBuffer(len(prompts))
        for prompt in prompts:
            buffer.admit(prompt)
        with self._scheduler.ahead(buffer):
            await self.wait_until(lambda: buffer.scored_groups == len(prompts))
        return buffer.take_batch(version=0)  # staleness does not matter here

    @property
    def asleep(self) -> frozenset[str]:
        """The names of the processes whose engine sleeps."""
        return self._registry.asleep

    @property
    def free_slots(self) -> int:
        """The number of further workers that the cluster could hold now, as far as its totals tell."""
        return self._context.factory.free_slots()

    @property
    def sampled_tokens(self) -> int:
        """The number of tokens in all responses so far."""
        return self._scheduler.sampled_tokens

    @property
    def process_ids(self) -> Mapping[str, int]:
        """The operating system's ids of the workers that are up, by name."""
        return self._registry.process_ids

    def take_probe_gap(self) -> float:
        """Return the largest |Δ log p| on the probe in all updates since the last call; 0 if no update happened."""
        return self._registry.take_probe_gap()

    def _start_supervisors(self, names: Sequence[str]) -> None:
        for name in names:
            supervisor = WorkerSupervisor(name, self._context)
            self._supervisors[name] = self._context.background.create_task(supervisor.run())
