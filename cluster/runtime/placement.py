"""Ray: connecting to it, reserving what the run needs, and making actors in the reserved places."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.core.config import ClusterConfig
from cluster.core.project import ROOT
from cluster.runtime.actor_logs import LOG_FILE_VARIABLE, SETUP_HOOK
from cluster.runtime.connect import explained_joining, explained_starting
from cluster.runtime.job_context import job_of_this_process, package_travels

_PACKAGES = ("cluster", "rollout", "learner", "reward")


class PlacementError(RuntimeError):
    """The cluster did not give what was asked for in time."""


def connect(config: ClusterConfig) -> str:
    """Join the configured Ray cluster, or start Ray on this machine. Returns where, in words.

    Raises:
        ConnectionError: there is no Ray at the address, or it does not let us in, or none can be started here.
    """
    in_a_job = job_of_this_process() is not None
    address = os.environ["RAY_ADDRESS"] if in_a_job else config.address or os.environ.get("RAY_ADDRESS")
    runtime_env: dict[str, Any] = {"worker_process_setup_hook": SETUP_HOOK}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        options["address"] = address
        if not package_travels():  # else they are in the job's working directory, which every process has
            # Nodes need not have this project installed; its packages travel.
            runtime_env["py_modules"] = [
                str(Path(importlib.import_module(p).__file__ or "").parent) for p in _PACKAGES
            ]
    else:
        # Without an address Ray would join any cluster that was started on this machine, or fail if it is gone.
        options |= {"address": "local", "include_dashboard": False, "num_cpus": os.cpu_count()}
        # Processes of this machine import the project from where the driver did, whatever their working directory.
        root = str(ROOT)
        search_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        # DeepSpeed compiles an operator with the ninja that is installed beside Python.
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        runtime_env["env_vars"] = {"PYTHONPATH": search_path, "PATH": programs}
    if not address:
        with explained_starting():
            ray.init(runtime_env=runtime_env, **options)
        return "Ray on this machine"
    with explained_joining(address):
        ray.init(runtime_env=runtime_env, **options)
    return f"the Ray cluster at {address}"


class Reservation:
    """Resources held for a set of actors: one bundle each, on nodes that have all of `labels`.

        async with Reservation("learner", [{"CPU": 1}, {"CPU": 1}], timeout_s=60) as place:
            actor = place.actor(LearnerRank, 0, options, bundle=0, log_file=..., env={})

    Leaving the block kills the actors and gives the resources back.
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
                f"the cluster did not give {self._name} its {_in_words(self._bundles)}{nodes} within "
                f"{self._timeout_s:g} s; "
                f"it has {_amounts(ray.cluster_resources())}, of which {_amounts(ray.available_resources())} are free"
            ) from None
        except asyncio.CancelledError:
            self._release()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def actor(
        self,
        cls: type,
        *arguments: Any,
        bundle: int,
        log_file: Path,
        env: Mapping[str, str],
        **options: Any,
    ) -> ray.actor.ActorHandle:
        """Make an actor of `cls` in place `bundle`, with all of that place's resources."""
        assert self._group is not None, "used outside its block"
        resources = self._bundles[bundle]
        actor = (
            ray.remote(cls)
            .options(
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, bundle),
                runtime_env={"env_vars": {LOG_FILE_VARIABLE: str(log_file), **env}},
                **options,
            )
            .remote(*arguments)
        )
        self._actors.append(actor)
        return actor

    def _release(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None


def _in_words(bundles: list[dict[str, float]]) -> str:
    return " + ".join(_amounts(bundle) for bundle in bundles)


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))


def bundle(cpus: float, gpus: float) -> dict[str, float]:
    """Ray refuses resources of 0 in a bundle, and a bundle without any."""
    asked = {"CPU": cpus, "GPU": gpus}
    return {kind: amount for kind, amount in asked.items() if amount} or {"CPU": 0.001}


def cpu_environment(threads: int, on_gpu: bool) -> dict[str, str]:
    """Environment of an actor that computes. Ray would set the threads from the reserved CPUs, which may be a
    fraction."""
    if on_gpu:
        return {}
    return {
        "OMP_NUM_THREADS": str(threads),
        "DS_ACCELERATOR": "cpu",
        # With "auto" every engine of a node would pick the same cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TOKENIZERS_PARALLELISM": "false",
    }
