"""The rollout fleet: which workers there are, what they serve, and what they work on.

Membership is `state.py`, each member's life is `supervisor.py`, work is `scheduler.py`; here they meet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from cluster.core.config import RunConfig
from cluster.core.types import PolicyVersion, Prompt, ScoredGroup
from cluster.training.worker_factory import WorkerFactory
from reward.service import RewardPool
from rollout.fleet.autoscaler import Autoscaler
from rollout.fleet.buffer import WorkBuffer
from rollout.fleet.context import FleetContext
from rollout.fleet.scheduler import Scheduler
from rollout.fleet.scoring import ScoringQueue
from rollout.fleet.state import FleetState, Resizing, WorkerState
from rollout.fleet.supervisor import WorkerSupervisor
from rollout.fleet.weight_sync import PullTransport, WeightTransport


class RolloutFleet:
    """N rollout workers that empty work buffers.

    Usage:
        async with asyncio.TaskGroup() as background:   # a fatal failure ends the block
            fleet = RolloutFleet(config, places, rewards, on_event, background, transport)
            await fleet.publish(policy)     # from now on prompts are sampled under these weights, or, without a
            fleet.serve_as_loaded()              # learner, under those that each worker has loaded
            fleet.feed(buffer)                   # keep working on what is admitted to `buffer`
            await fleet.wait_until(lambda: buffer.scored_groups >= 32)
            scored = await fleet.sample(prompts) # on the side, first in line: an evaluation
            fleet.resize(4)                      # at any time
            await fleet.stop()
    """

    def __init__(
        self,
        config: RunConfig,
        places: WorkerFactory,
        rewards: RewardPool,
        on_event: Callable[[str], None],
        background: asyncio.TaskGroup,
        transport: WeightTransport | None = None,
    ) -> None:
        self.state = FleetState(config.rollout.workers, config.rollout.max_consecutive_failures)
        self._scheduler = Scheduler()
        transport = transport or PullTransport(config.rollout)
        judging = ScoringQueue(rewards, self._scheduler, background)
        self._room = FleetContext(
            config, places, judging, on_event, self.state, self._scheduler, background, transport
        )
        self._supervisors: dict[str, asyncio.Task[None]] = {}
        rollout = config.rollout
        self._autoscaler = (
            Autoscaler(rollout.min_workers, rollout.max_workers) if rollout.max_workers else None
        )
        self._start_supervisors([member.name for member in self.state.members])

    async def stop(self) -> None:
        """End all workers and give their resources back."""
        for keeper in self._supervisors.values():
            keeper.cancel()
        await asyncio.gather(*self._supervisors.values(), return_exceptions=True)

    def resize(self, workers: int) -> Resizing:
        """Change how many workers there are, at once; nobody waits for it. New ones start and pull the current weights;
        those that go finish what they hold.

        Raises:
            ValueError: `workers` is not positive, or not in the range in which the number adapts itself.
        """
        if self._autoscaler is not None:
            self._autoscaler.refuse_outside(workers)
        change = self.state.resize(workers)
        self._start_supervisors(change.added)
        for name in change.drained:
            if self.state[name].state is WorkerState.RETIRED:  # it held nothing yet
                self._supervisors[name].cancel()
        self._scheduler.announce()
        return change

    def adapt_size(self, waited_s: float, step_s: float) -> None:
        """After a step: change the size if that is configured, and if waiting `waited_s` of `step_s` for samples calls
        for it."""
        if self._autoscaler is None:
            return
        workers, up = self.state.size, self.state.started_workers
        wanted = self._autoscaler.wanted(workers, waited_s, step_s, all_up=up == workers)
        if wanted != workers:
            self.resize(wanted)
            self._room.on_event(
                f"rollout workers: {workers} → {wanted}; the learner waited for samples for {waited_s / step_s:.0%} "
                "of a step"
            )

    async def publish(self, policy: PolicyVersion) -> None:
        """Make `policy` the version to serve. The one before is let go, and its memory with it. Returns when the
        learner may change its weights again; nobody waits until they are served."""
        serving = self.state.healthy_processes
        others = self.state.count({WorkerState.STALE, WorkerState.SUSPECT}) > 0
        self._room.policy = policy
        self._room.resting = False
        self._room.asleep.clear()
        self.state.published(policy.version)
        self._scheduler.announce()
        await self._room.transport.hand_out(policy, serving, others)

    async def rest(self) -> None:
        """Where that is configured: have the engines sleep until something is published. Returns when they do."""
        room = self._room
        if not room.config.rollout.sleep_while_learning:
            return
        room.resting = True
        self._scheduler.announce()
        await self.wait_until(lambda: room.asleep.issuperset(self.state.healthy_processes))

    def serve_as_loaded(self) -> None:
        """Serve the model as each worker loads it. There is no learner then, and nothing to pull."""
        self.state.serve_as_loaded()
        self._scheduler.announce()

    def feed(self, buffer: WorkBuffer) -> None:
        """Work on what is waiting in `buffer`, now and later. Call again after admitting prompts."""
        self._scheduler.feed(buffer)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds; it is looked at whenever something happened in the fleet."""
        await self._scheduler.wait_until(condition)

    async def sample(self, prompts: Sequence[Prompt]) -> list[ScoredGroup]:
        """Sample and score `prompts`, before anything else that waits."""
        buffer = WorkBuffer(len(prompts))
        for prompt in prompts:
            buffer.admit(prompt)
        with self._scheduler.ahead(buffer):
            await self.wait_until(lambda: buffer.scored_groups == len(prompts))
        return buffer.take_batch(version=0)  # what it was sampled under does not matter

    @property
    def asleep(self) -> frozenset[str]:
        """The processes whose engine sleeps."""
        return frozenset(self._room.asleep)

    @property
    def free_places(self) -> int:
        """How many more workers the cluster has room for now, as far as its totals tell."""
        return self._room.places.free()

    @property
    def sampled_tokens(self) -> int:
        """Of all responses so far."""
        return self._scheduler.sampled_tokens

    @property
    def process_ids(self) -> dict[str, int]:
        """Of the workers that are up, by name."""
        return self._room.process_ids

    def take_probe_gap(self) -> float:
        """Largest |Δ log p| on the probe in all pulls since the last call; 0 if there was none."""
        gaps, self._room.probe_gaps = self._room.probe_gaps, []
        return max(gaps, default=0.0)

    def _start_supervisors(self, names: Sequence[str]) -> None:
        for name in names:
            self._supervisors[name] = self._room.background.create_task(
                WorkerSupervisor(name, self._room).keep()
            )
