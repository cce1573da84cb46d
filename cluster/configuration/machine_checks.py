"""Check a run against the machine that it is meant for: this one, or one that `launch.py check --machine` describes."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator

import psutil

from cluster.configuration.chosen_defaults import Choice, with_device_defaults, with_model_defaults
from cluster.configuration.device_checks import capability_problems
from cluster.configuration.devices import read_devices, visible_devices
from cluster.configuration.machine import Machine, this_machine
from cluster.configuration.memory import (
    GIB,
    copied_bytes,
    engine_memory,
    exported_bytes,
    learner_memory,
    offloaded_bytes,
    shared_memory,
)
from cluster.configuration.memory_checks import check_gpu_memory
from cluster.configuration.model_checks import context_limit
from cluster.configuration.model_shape import ModelShape, UnknownShapeError, find_shape
from cluster.core.addresses import cluster_address
from cluster.core.config import ActorRole, RunConfig
from cluster.core.gpu_slots import take_gpus
from cluster.core.problem import Problem


def on_a_cluster(config: RunConfig) -> bool:
    """Return True if the run connects to a cluster, whose nodes are not this machine."""
    return bool(config.cluster.address or cluster_address(None))


def target_machine(config: RunConfig, described: Machine | None = None) -> Machine | None:
    """Return the GPUs on which the run computes: the described ones or those of this machine. None if they are not
    known, or the run needs none."""
    if described is not None:
        return described
    if on_a_cluster(config) or not (config.learner.gpus_per_rank or config.rollout.gpus_per_worker):
        return None
    return this_machine(read_devices(), visible_devices())


def known_shape(config: RunConfig) -> ModelShape | None:
    """Return the shape of the run's model, or None if it is not known."""
    try:
        return find_shape(config)
    except UnknownShapeError:
        return None


def with_chosen_defaults(
    config: RunConfig, described: Machine | None = None
) -> tuple[RunConfig, tuple[Choice, ...]]:
    """Return the configuration with the settings for its model and the devices on which it runs, and the choices."""
    config, for_model = with_model_defaults(config, *context_limit(config))
    config, for_devices = with_device_defaults(config, known_shape(config), target_machine(config, described))
    return config, for_model + for_devices


def check_described(config: RunConfig, machine: Machine, roles: Collection[ActorRole]) -> Iterator[Problem]:
    """Report actors that the GPUs of a described machine cannot hold, and settings that they do not support."""
    if not fits(config, roles, [machine.gpus] * machine.nodes):
        ranks, workers = config.learner, config.rollout
        yield Problem(
            "--machine",
            f"{machine} cannot hold {ranks.ranks} learner rank(s) of {ranks.gpus_per_rank:g} GPUs and "
            f"{workers.workers} rollout worker(s) of {workers.gpus_per_worker:g}",
            "lower learner.ranks, rollout.workers or their GPUs, or describe a larger machine",
        )
    if machine.capability is not None:
        yield from capability_problems(machine.gpu, machine.capability, config)


def fits(config: RunConfig, roles: Collection[ActorRole], gpus_by_node: Collection[int]) -> bool:
    """Return True if the nodes can hold the actors on GPUs, the learner's ranks first, as the run reserves them."""
    nodes = [[1.0] * gpus for gpus in gpus_by_node]
    amounts: list[float] = []
    if "learner" in roles:
        amounts += [config.learner.gpus_per_rank] * config.learner.ranks
    if "rollout" in roles:
        amounts += [config.rollout.gpus_per_worker] * config.rollout.workers
    return all(any(take_gpus(amount, free) for free in nodes) for amount in amounts)


def check_memory(
    config: RunConfig, roles: Collection[ActorRole], described: Machine | None = None
) -> Iterator[Problem]:
    """Report actors that need more memory than their GPU, or than this machine. A model whose shape is not known is
    not checked."""
    shape = known_shape(config)
    if shape is None:
        return
    machine = target_machine(config, described)
    if machine is not None:
        yield from check_gpu_memory(config, shape, machine.memory_gib, roles)
    if described is None and not on_a_cluster(config):
        yield from _check_host(config, shape, roles)


def host_bytes(config: RunConfig, shape: ModelShape, roles: Collection[ActorRole]) -> float:
    """Return the bytes of host memory that the run's processes need, without shared memory."""
    total = 0.0
    if "learner" in roles and not config.learner.gpus_per_rank:
        total += config.learner.ranks * learner_memory(config, shape).total
    elif "learner" in roles:
        total += config.learner.ranks * offloaded_bytes(config, shape)
        total += copied_bytes(config, shape) + exported_bytes(config, shape)
    if "rollout" in roles and not config.rollout.gpus_per_worker:
        total += config.rollout.workers * engine_memory(config, shape).total
    return total


def _check_host(config: RunConfig, shape: ModelShape, roles: Collection[ActorRole]) -> Iterator[Problem]:
    """Report a run that needs more than the memory, or the shared memory, of this machine."""
    needed, available = host_bytes(config, shape, roles), psutil.virtual_memory().total
    if needed > available:
        yield Problem(
            "cluster",
            f"the run needs about {needed / GIB:.1f} GiB of memory, but this machine has {available / GIB:.1f}",
            "lower rollout.workers, learner.micro_batch_tokens or learner.ranks, set learner.lora_rank, or connect to "
            "a cluster with --address",
        )
    published = shared_memory(config, shape).total if {"learner", "rollout"} <= set(roles) else 0
    if published > (available := shutil.disk_usage("/dev/shm").total):
        yield Problem(
            "environment",
            f"new weights need {published / GIB:.1f} GiB of /dev/shm, which has {available / GIB:.1f}",
            f"enlarge it (docker run --shm-size={published / GIB + 1:.0f}g), or set learner.lora_rank",
        )
