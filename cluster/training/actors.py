"""Creates the actors of a run: learner ranks, reward actors and rollout workers, each in a reserved slot.

Leaving a block kills its actors and releases their resources.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from cluster.configuration.gpu_checks import engines_on_one_gpu
from cluster.core.actor import Actor
from cluster.core.actor_options import EngineOptions, LearnerOptions
from cluster.core.config import RunConfig
from cluster.core.protocols import ResponseScorer
from cluster.core.weight_transport import (
    WEIGHT_TRANSPORTS,
    CoordinatorContext,
    PolicyPublisher,
    WeightCoordinator,
    WeightTransport,
    transport_part,
)
from cluster.run_state.run_directory import RunDirectory
from cluster.runtime.placement import Reservation, bundle, cpu_environment
from learner.engine.group import LearnerGroup
from learner.engine.process_setup import learner_environment
from learner.engine.rank import LearnerRank
from reward.service import RewardActor, RewardPool, passed_variables, scoring_pace
from rollout.engine.worker import RolloutWorker
from rollout.fleet.fleet import RolloutFleet

CONCURRENT_CALLS = 1000
"""The number of calls that an actor with coroutines handles at a time."""


@dataclass(frozen=True, slots=True)
class ActorGraph:
    """Creates the actors of `config` for the model in directory `model`.

    Usage:
        graph = ActorGraph(config, run_directory, model)
        async with graph.training(probe_tokens, on_event) as (learner, fleet):
            ...
        async with graph.rewards() as rewards, graph.fleet(rewards, on_event) as fleet:   # without a learner
            ...
    """

    config: RunConfig
    run_directory: RunDirectory
    model: Path
    worker_class: type[RolloutWorker] = RolloutWorker
    """The class of the rollout workers. Drills use one that fails."""

    @asynccontextmanager
    async def training(
        self, probe_tokens: tuple[tuple[int, ...], ...], on_event: Callable[[str], None]
    ) -> AsyncIterator[tuple[LearnerGroup, RolloutFleet]]:
        """Yield the started learner, and the fleet, whose workers start in the background.

        Both start at the same time, unless they share GPUs. Then the learner starts first: an engine measures the free
        memory when it starts, and would take what the learner allocates meanwhile for its own use.
        """
        async with self.learner(probe_tokens) as learner, self.rewards() as rewards:
            shared = engines_on_one_gpu(self.config, beside_learner=True) > 0
            if shared:
                await learner.start()
            async with self.fleet(rewards, on_event, learner) as fleet:
                if not shared:
                    await learner.start()
                yield learner, fleet

    @asynccontextmanager
    async def learner(self, probe_tokens: tuple[tuple[int, ...], ...]) -> AsyncIterator[LearnerGroup]:
        """Yield the learner ranks, which are not started yet."""
        config = self.config.learner
        options = learner_options(self.config, self.model, probe_tokens)
        bundles = [bundle(config.cpus_per_rank, config.gpus_per_rank)] * config.ranks
        cluster = self.config.cluster
        async with Reservation(
            "the learner", bundles, cluster.placement_timeout_s, cluster.node_labels.get("learner")
        ) as slots:
            ranks = [
                slots.actor(
                    LearnerRank,
                    rank,
                    options,
                    bundle=rank,
                    log_file=self.run_directory.log_file(f"learner-{rank}"),
                    env=cpu_environment(config.threads_per_rank, on_gpu=config.gpus_per_rank > 0)
                    | learner_environment(config),
                )
                for rank in range(config.ranks)
            ]
            yield LearnerGroup(ranks, options)

    @asynccontextmanager
    async def rewards(self) -> AsyncIterator[RewardPool]:
        """Yield the reward actors."""
        config = self.config.reward
        bundles = [bundle(config.cpus_per_worker, 0)] * config.workers
        cluster = self.config.cluster
        variables = passed_variables(self.config.task)
        async with Reservation(
            "the reward actors", bundles, cluster.placement_timeout_s, cluster.node_labels.get("reward")
        ) as slots:
            actors = [
                slots.actor(
                    RewardActor,
                    self.config.task,
                    config,
                    [os.getcwd()],  # users' modules are found relative to the directory of the command
                    variables,  # as an argument, because Ray shows the environments of actors to others
                    bundle=index,
                    log_file=self.run_directory.log_file(f"reward-{index}"),
                    env={},
                    max_restarts=-1,
                    # Until Ray has noticed that a node is lost, each retry fails within two seconds. The pool's
                    # deadline ends a call that never succeeds.
                    max_task_retries=-1,
                    max_concurrency=CONCURRENT_CALLS,
                )
                for index in range(config.workers)
            ]
            pace = scoring_pace(self.config.task, config)
            pool = RewardPool(actors, config.timeout_s, config.truncated_is_incorrect, pace)
            try:
                yield pool
            finally:
                await pool.close()

    @asynccontextmanager
    async def fleet(
        self,
        scorer: ResponseScorer,
        on_event: Callable[[str], None],
        learner: PolicyPublisher | None = None,
    ) -> AsyncIterator[RolloutFleet]:
        """Yield the fleet, whose workers start in the background. Their fatal failures are raised in the block. Without
        a `learner` the workers serve the model as they load it."""
        rollout = self.config.rollout
        factory = RayWorkerFactory(
            self.config, engine_options(self.config, self.model), self.run_directory, self.worker_class
        )
        async with asyncio.TaskGroup() as background:
            coordinator: WeightCoordinator = transport_part(self._transport.coordinator)(
                CoordinatorContext(
                    update_timeout_s=rollout.update_timeout_s,
                    processes_per_engine=rollout.tensor_parallel_size,
                    learner=learner,
                    on_event=on_event,
                    background=background,
                )
            )
            fleet = RolloutFleet(self.config, factory, scorer, coordinator, on_event, background)
            try:
                yield fleet
            finally:
                await fleet.stop()

    @property
    def _transport(self) -> WeightTransport:
        return WEIGHT_TRANSPORTS[self.config.rollout.weight_transport]


@dataclass(frozen=True, slots=True)
class RayWorkerFactory:
    """A `WorkerFactory` of the fleet: each worker is a Ray actor in a slot of its own, on any node that has the
    resources. The slot is reserved again for each process, so it is never on a node that is gone."""

    config: RunConfig
    options: EngineOptions
    run_directory: RunDirectory
    worker_class: type[RolloutWorker] = RolloutWorker
    """The class of the actors."""

    @property
    def logs(self) -> Path:
        return self.run_directory.logs

    def free_slots(self) -> int:
        """Return how many more workers the cluster could hold now, as far as its totals tell."""
        available, rollout = ray.available_resources(), self.config.rollout
        requested = bundle(rollout.cpus_per_worker, rollout.gpus_per_worker)
        return int(min(round(available.get(kind, 0) / amount, 4) for kind, amount in requested.items()))

    @asynccontextmanager
    async def worker(self, name: str) -> AsyncIterator[Actor[RolloutWorker]]:
        """Reserve a slot and start a process for `name`. Both end with the block. While the cluster has no slot, Ray's
        autoscaler sees the request, and may add a node for it.

        Raises:
            PlacementError: if there was no slot in time.
        """
        rollout, cluster = self.config.rollout, self.config.cluster
        bundles = [bundle(rollout.cpus_per_worker, rollout.gpus_per_worker)]
        async with Reservation(
            name, bundles, cluster.placement_timeout_s, cluster.node_labels.get("rollout")
        ) as slots:
            yield slots.actor(
                self.worker_class,
                name,
                self.options,
                bundle=0,
                log_file=self.run_directory.log_file(name),
                env=cpu_environment(rollout.threads_per_worker, on_gpu=rollout.gpus_per_worker > 0),
                max_concurrency=CONCURRENT_CALLS,
            )


def learner_options(
    config: RunConfig, model: Path, probe_tokens: tuple[tuple[int, ...], ...]
) -> LearnerOptions:
    """Return the options of the learner's ranks."""
    return LearnerOptions(
        model=str(model),
        dtype=config.model.dtype,
        temperature=config.rollout.temperature,
        seed=config.seed,
        learner=config.learner,
        objective=config.objective,
        probe_tokens=probe_tokens,
        steps=config.steps * config.optimizer_steps_per_batch,
        max_context_tokens=config.model.max_context_tokens,
        shares_gpu=config.rollout.sleep_while_learning,
        transport=WEIGHT_TRANSPORTS[config.rollout.weight_transport],
    )


def engine_options(config: RunConfig, model: Path) -> EngineOptions:
    """Return the options of the rollout workers, for one execution of the run."""
    rollout = config.rollout
    return EngineOptions(
        run_id=uuid.uuid4().hex,  # files that an earlier execution left behind have another id
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
        transport=WEIGHT_TRANSPORTS[rollout.weight_transport],
    )
