"""Where rollout workers run: each process has a place of its own in the Ray cluster, wherever there is room."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import ray

from cluster.core.actor_options import EngineOptions
from cluster.core.config import RunConfig
from cluster.run_state.run_directory import RunDirectory
from cluster.runtime.placement import Reservation, bundle, cpu_environment
from rollout.engine.worker import RolloutWorker

CALLS_AT_A_TIME = 1000


@dataclass(frozen=True, slots=True)
class WorkerFactory:
    """Makes the actors of one fleet.

    Usage:
        async with places.worker("rollout-0") as worker:   # reserved anew each time, so never on a node that is gone
            await worker.start.remote()
    """

    config: RunConfig
    options: EngineOptions
    run_directory: RunDirectory
    worker_class: type = RolloutWorker
    """Made into the actors."""

    def free(self) -> int:
        """How many more workers there is room for now, as far as the cluster's totals tell."""
        there, rollout = ray.available_resources(), self.config.rollout
        asked = bundle(rollout.cpus_per_worker, rollout.gpus_per_worker)
        return int(min(round(there.get(kind, 0) / amount, 4) for kind, amount in asked.items()))

    @asynccontextmanager
    async def worker(self, name: str) -> AsyncIterator[ray.actor.ActorHandle]:
        """A process for `name`, which ends with the block. While there is no room Ray's autoscaler sees what is asked
        for, and may bring a node for it.

        Raises:
            PlacementError: there was no room in time.
        """
        rollout, cluster = self.config.rollout, self.config.cluster
        bundles = [bundle(rollout.cpus_per_worker, rollout.gpus_per_worker)]
        async with Reservation(
            name, bundles, cluster.placement_timeout_s, cluster.node_labels.get("rollout")
        ) as place:
            yield place.actor(
                self.worker_class,
                name,
                self.options,
                bundle=0,
                log_file=self.run_directory.log_file(name),
                env=cpu_environment(rollout.threads_per_worker, on_gpu=rollout.gpus_per_worker > 0),
                max_concurrency=CALLS_AT_A_TIME,
            )
