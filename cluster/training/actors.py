"""The run's actors: what each is told, and where it is placed.

Leaving a block kills its actors and frees their resources.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.core.actor import Actor
from cluster.core.actor_options import EngineOptions, LearnerOptions
from cluster.core.config import RunConfig
from cluster.run_state.run_directory import RunDirectory
from cluster.runtime.placement import Reservation, bundle, cpu_environment
from cluster.training.worker_factory import WorkerFactory
from learner.engine.group import LearnerGroup
from learner.engine.rank import LearnerRank
from reward.service import RewardActor, RewardPool
from rollout.engine.worker import RolloutWorker
from rollout.fleet.fleet import RolloutFleet
from rollout.fleet.weight_sync import BroadcastTransport


@dataclass(frozen=True, slots=True)
class ActorGraph:
    """Makes the actors of `config` for the model in directory `model`.

    Usage:
        graph = ActorGraph(config, run_directory, model)
        async with graph.learner(probe_tokens) as learner, graph.rewards() as rewards:
            async with graph.fleet(rewards, on_event) as fleet:
                ...
    """

    config: RunConfig
    run_directory: RunDirectory
    model: Path
    worker_class: type = RolloutWorker
    """Made into the rollout workers; drills take one that fails."""

    @asynccontextmanager
    async def learner(self, probe_tokens: tuple[tuple[int, ...], ...]) -> AsyncIterator[LearnerGroup]:
        """The learner ranks, not started yet."""
        config = self.config.learner
        options = LearnerOptions(
            model=str(self.model),
            dtype=self.config.model.dtype,
            temperature=self.config.rollout.temperature,
            seed=self.config.seed,
            learner=config,
            objective=self.config.objective,
            probe_tokens=probe_tokens,
            steps=self.config.steps * self.config.optimizer_steps_per_batch,
            max_context_tokens=self.config.model.max_context_tokens,
            shares_gpu=self.config.rollout.sleep_while_learning,
        )
        bundles = [bundle(config.cpus_per_rank, config.gpus_per_rank)] * config.ranks
        cluster = self.config.cluster
        async with Reservation(
            "the learner", bundles, cluster.placement_timeout_s, cluster.node_labels.get("learner")
        ) as place:
            ranks = [
                place.actor(
                    LearnerRank,
                    rank,
                    options,
                    bundle=rank,
                    log_file=self.run_directory.log_file(f"learner-{rank}"),
                    env=cpu_environment(config.threads_per_rank, on_gpu=config.gpus_per_rank > 0),
                )
                for rank in range(config.ranks)
            ]
            yield LearnerGroup(ranks, options, offers_weights=not self._broadcasts)

    @asynccontextmanager
    async def rewards(self) -> AsyncIterator[RewardPool]:
        """The reward actors."""
        config = self.config.reward
        bundles = [bundle(config.cpus_per_worker, 0)] * config.workers
        cluster = self.config.cluster
        async with Reservation(
            "the reward actors", bundles, cluster.placement_timeout_s, cluster.node_labels.get("reward")
        ) as place:
            actors = [
                place.actor(
                    RewardActor,
                    self.config.task,
                    config,
                    [os.getcwd()],  # users' modules are found from where the command was given
                    bundle=index,
                    log_file=self.run_directory.log_file(f"reward-{index}"),
                    env={},
                    max_restarts=-1,
                    max_task_retries=3,
                    max_concurrency=1000,
                )
                for index in range(config.workers)
            ]
            pool = RewardPool(
                [Actor(actor) for actor in actors], config.timeout_s, config.truncated_is_incorrect
            )
            try:
                yield pool
            finally:
                await pool.close()

    @property
    def _broadcasts(self) -> bool:
        return self.config.rollout.weight_transport == "broadcast"

    @asynccontextmanager
    async def fleet(
        self, rewards: RewardPool, on_event: Callable[[str], None], learner: LearnerGroup | None = None
    ) -> AsyncIterator[RolloutFleet]:
        """The rollout workers, starting in the background. Their fatal failures are raised in the block. Without a
        `learner` they serve what they load."""
        places = WorkerFactory(
            self.config, engine_options(self.config, self.model), self.run_directory, self.worker_class
        )
        async with asyncio.TaskGroup() as background:
            transport = None
            if learner is not None and self._broadcasts:
                transport = BroadcastTransport(self.config.rollout, learner, on_event, background)
            fleet = RolloutFleet(self.config, places, rewards, on_event, background, transport)
            try:
                yield fleet
            finally:
                await fleet.stop()


def engine_options(config: RunConfig, model: Path) -> EngineOptions:
    """What the rollout workers of one execution of the run are told."""
    rollout = config.rollout
    return EngineOptions(
        run_id=uuid.uuid4().hex,  # of this execution: files that an earlier one left behind are not ours
        model=str(model),
        dtype=config.model.dtype,
        max_context_tokens=config.model.max_context_tokens,
        max_sequences=rollout.max_sequences,
        tensor_parallel_size=rollout.tensor_parallel_size,
        kv_cache_gib=rollout.kv_cache_gib,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        on_gpu=rollout.gpus_per_worker > 0,
        on_new_weights=rollout.on_new_weights,
        response_timeout_s=rollout.response_timeout_s,
        sleeps=rollout.sleep_while_learning,
    )
