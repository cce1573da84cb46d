"""Check the machine: its CPUs and GPUs, the run directory and the installed packages. Torch-free and Ray-free."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from cluster.core.config import ACTOR_ROLES, ActorRole, RunConfig
from cluster.core.problem import Problem


def check_resources(config: RunConfig, roles: Collection[ActorRole] = ACTOR_ROLES) -> Iterator[Problem]:
    """Report resources that this machine lacks. The resources of a cluster are checked when the run connects to it."""
    if config.cluster.address or os.environ.get("RAY_ADDRESS"):
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
    if gpus > (available := _gpus()):
        yield Problem(
            "cluster",
            f"the run needs {gpus:g} GPUs, but this machine has {available}",
            "lower rollout.gpus_per_worker or learner.gpus_per_rank, or connect to a cluster with --address",
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


def _gpus() -> int:
    """Return the number of GPUs of this machine that are visible to CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(list(Path("/dev").glob("nvidia[0-9]*")))
    devices = [device.strip() for device in visible.split(",")]
    # CUDA ignores every device after the first invalid one.
    return len(list(itertools.takewhile(lambda device: device not in ("", "-1"), devices)))


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
