"""Reserve resources of a Ray cluster, and create actors in the reserved slots."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.core.actor import Actor
from cluster.core.errors import PlacementError
from cluster.core.secrets import secret_names
from cluster.runtime.actor_logs import LOG_FILE_VARIABLE

ActorT = TypeVar("ActorT")


class Reservation:
    """Reserved resources for a group of actors: one slot (bundle) for each, on nodes that have all of `labels`.

        async with Reservation("learner", [{"CPU": 1}, {"CPU": 1}], timeout_s=60) as reservation:
            actor = reservation.actor(LearnerRank, 0, options, bundle=0, log_file=..., env={})

    Leaving the block kills the actors and releases the resources.
    """

    def __init__(
        self,
        name: str,
        bundles: list[dict[str, float]],
        timeout_s: float,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._name = name
        self._bundles = bundles
        self._labels = dict(labels or {})
        self._timeout_s = timeout_s
        self._group: PlacementGroup | None = None
        self._actors: list[ray.actor.ActorHandle] = []

    async def __aenter__(self) -> Reservation:
        selectors = [self._labels] * len(self._bundles)
        self._group = placement_group(
            self._bundles, strategy="PACK", name=self._name, bundle_label_selector=selectors
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._group.ready()
        except TimeoutError:
            self._release()
            labels = ", ".join(f"{key}={value}" for key, value in self._labels.items())
            nodes = f" on nodes with the labels {labels}" if labels else ""
            raise PlacementError(
                f"the cluster did not provide the resources of {self._name} ({_described(self._bundles)}){nodes} "
                f"within {self._timeout_s:g} s; it has {_amounts(ray.cluster_resources())}, of which "
                f"{_amounts(ray.available_resources())} are free; launch.py check CONFIG --cluster compares"
            ) from None
        except asyncio.CancelledError:
            self._release()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def actor(
        self,
        cls: type[ActorT],
        *arguments: Any,
        bundle: int,
        log_file: Path,
        env: Mapping[str, str],
        **options: Any,
    ) -> Actor[ActorT]:
        """Create an actor of `cls` in the slot `bundle`, with all resources of that slot."""
        assert self._group is not None, "the reservation is used outside its block"
        resources = self._bundles[bundle]
        actor = (
            ray.remote(cls)
            .options(
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, bundle),
                runtime_env={"env_vars": {**_without_secrets(), LOG_FILE_VARIABLE: str(log_file), **env}},
                **options,
            )
            .remote(*arguments)
        )
        self._actors.append(actor)
        return Actor(actor)

    def _release(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None


def _without_secrets() -> dict[str, str]:
    """Return empty values for the secrets of this process, which an actor on this machine would inherit. The actor's
    process removes these variables when it starts, and those that only its node has."""
    return dict.fromkeys(secret_names(os.environ), "")


def _described(bundles: list[dict[str, float]]) -> str:
    return " + ".join(_amounts(bundle) for bundle in bundles)


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))


def bundle(cpus: float, gpus: float) -> dict[str, float]:
    """Return the resources of one slot. Ray refuses amounts of 0, and a bundle without any resource."""
    requested = {"CPU": cpus, "GPU": gpus}
    return {kind: amount for kind, amount in requested.items() if amount} or {"CPU": 0.001}


def cpu_environment(threads: int, on_gpu: bool) -> dict[str, str]:
    """Return the environment of an actor that computes.

    Ray would derive the number of threads from the reserved CPUs, which may be a fraction of one.
    """
    if on_gpu:
        return {}
    return {
        "OMP_NUM_THREADS": str(threads),
        "DS_ACCELERATOR": "cpu",
        # With "auto" all engines of a node would choose the same cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TOKENIZERS_PARALLELISM": "false",
    }
