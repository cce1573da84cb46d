"""The rollout fleet: which workers there are, what they serve, and what they work on.

Membership is `state.py`, each member's life is `supervisor.py`, work is `scheduler.py`; here they meet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from cluster.core.config import RunConfig
from cluster.core.types import Prompt, Publication, ScoredGroup
from cluster.training.worker_factory import WorkerPlaces
from reward.scoring import RewardPool
from rollout.fleet.autoscaler import Autoscaler
from rollout.fleet.buffer import WorkBuffer
from rollout.fleet.context import FleetRoom
from rollout.fleet.scheduler import Dispatch
from rollout.fleet.scoring import Judging
from rollout.fleet.state import FleetState, Resizing, WorkerState
from rollout.fleet.supervisor import WorkerKeeper
from rollout.fleet.weight_sync import PullCarrier, WeightCarrier


class RolloutFleet:
    """N rollout workers that empty work buffers.

    Usage:
        async with asyncio.TaskGroup() as background:   # a fatal failure ends the block
            fleet = RolloutFleet(config, places, rewards, on_event, background, carrier)
            await fleet.publish(publication)     # from now on prompts are sampled under these weights, or, without a
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
        places: WorkerPlaces,
        rewards: RewardPool,
        on_event: Callable[[str], None],
        background: asyncio.TaskGroup,
        carrier: WeightCarrier | None = None,
    ) -> None:
        self.state = FleetState(config.rollout.workers, config.rollout.restarts_in_a_row)
        self._dispatch = Dispatch()
        carrier = carrier or PullCarrier(config.rollout)
        judging = Judging(rewards, self._dispatch, background)
        self._room = FleetRoom(
            config, places, judging, on_event, self.state, self._dispatch, background, carrier
        )
        self._keepers: dict[str, asyncio.Task[None]] = {}
        rollout = config.rollout
        self._autoscaler = (
            Autoscaler(rollout.min_workers, rollout.max_workers) if rollout.max_workers else None
        )
        self._start_keepers([member.name for member in self.state.members])

    async def stop(self) -> None:
        """End all workers and give their resources back."""
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)

    def resize(self, workers: int) -> Resizing:
        """Change how many workers there are, at once; nobody waits for it. New ones start and pull the current weights;
        those that go finish what they hold.

        Raises:
            ValueError: `workers` is not positive, or not in the range in which the number adapts itself.
        """
        if self._autoscaler is not None:
            self._autoscaler.refuse_outside(workers)
        change = self.state.resize(workers)
        self._start_keepers(change.added)
        for name in change.drained:
            if self.state[name].state is WorkerState.RETIRED:  # it held nothing yet
                self._keepers[name].cancel()
        self._dispatch.announce()
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

    async def publish(self, publication: Publication) -> None:
        """Make `publication` the version to serve. The one before is let go, and its memory with it. Returns when the
        learner may change its weights again; nobody waits until they are served."""
        serving = self.state.healthy_processes
        others = self.state.count({WorkerState.STALE, WorkerState.SUSPECT}) > 0
        self._room.publication = publication
        self._room.resting = False
        self._room.asleep.clear()
        self.state.published(publication.version)
        self._dispatch.announce()
        await self._room.carrier.hand_out(publication, serving, others)

    async def rest(self) -> None:
        """Where that is configured: have the engines sleep until something is published. Returns when they do."""
        room = self._room
        if not room.config.rollout.sleep_while_learning:
            return
        room.resting = True
        self._dispatch.announce()
        await self.wait_until(lambda: room.asleep.issuperset(self.state.healthy_processes))

    def serve_as_loaded(self) -> None:
        """Serve the model as each worker loads it. There is no learner then, and nothing to pull."""
        self.state.serve_as_loaded()
        self._dispatch.announce()

    def feed(self, buffer: WorkBuffer) -> None:
        """Work on what is waiting in `buffer`, now and later. Call again after admitting prompts."""
        self._dispatch.feed(buffer)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds; it is looked at whenever something happened in the fleet."""
        await self._dispatch.wait_until(condition)

    async def sample(self, prompts: Sequence[Prompt]) -> list[ScoredGroup]:
        """Sample and score `prompts`, before anything else that waits."""
        buffer = WorkBuffer(len(prompts))
        for prompt in prompts:
            buffer.admit(prompt)
        with self._dispatch.ahead(buffer):
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
        return self._dispatch.sampled_tokens

    @property
    def process_ids(self) -> dict[str, int]:
        """Of the workers that are up, by name."""
        return self._room.process_ids

    def take_probe_gap(self) -> float:
        """Largest |Δ log p| on the probe in all pulls since the last call; 0 if there was none."""
        gaps, self._room.probe_gaps = self._room.probe_gaps, []
        return max(gaps, default=0.0)

    def _start_keepers(self, names: Sequence[str]) -> None:
        for name in names:
            self._keepers[name] = self._room.background.create_task(WorkerKeeper(name, self._room).keep())
