"""What every command with actors does first and last: start Ray, make the model ready, clear all of it away."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray

from cluster.core.config import RunConfig
from cluster.core.errors import PlacementError
from cluster.models.source import prepare_model
from cluster.runtime.connect import connect
from cluster.runtime.signals import raise_on_sigterm
from cluster.tracking import RunConsole
from cluster.training.dataset import UnusablePromptError
from learner.engine.group import LearnerStartError
from learner.state.state_files import CheckpointError
from reward.service import RewardServiceError
from rollout.fleet.supervisor import FleetLostError, first_cause

ResultT = TypeVar("ResultT")


class UnusableModelError(ValueError):
    """The model cannot be built, converted or downloaded; says why in one line."""


RUN_ERRORS = (
    UnusableModelError,
    LearnerStartError,
    PlacementError,
    FleetLostError,
    UnusablePromptError,
    CheckpointError,
    RewardServiceError,
    TimeoutError,
    ConnectionError,
    OSError,
    ray.exceptions.RayError,
)
"""What may stop a command through no fault of this program, and says by itself what happened."""


@contextmanager
def ray_started(config: RunConfig, console: RunConsole) -> Iterator[None]:
    """The configured cluster is joined, or Ray runs on this machine, while the block does."""
    console.stage("starting Ray")
    place = connect(config.cluster)
    raise_on_sigterm()  # now: Ray has put its own handler there, which ends the process at once
    try:
        console.event(f"on {place}")
        yield
    finally:
        ray.shutdown()


def run_to_the_end(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The result of `work`. Of tasks that failed together, the first failure is raised."""
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:
        raise first_cause(group) from group


def prepare_in_cluster(config: RunConfig, console: RunConsole) -> Path:
    """Build, convert or download the model in a process of its own, so that the driver never loads torch.

    That process may be on another node, and its environment is the node's: the driver's `HF_TOKEN` is given to it as an
    argument, which Ray neither logs nor lists, and goes into no environment, which others would inherit.

    Raises:
        UnusableModelError: it cannot be had.
    """

    @ray.remote(num_cpus=1, num_returns="streaming", max_retries=0)
    def prepare(config: RunConfig, hub_token: str | None) -> Iterator[str | Path]:
        # Nothing else runs yet. Ray allows one thread per reserved CPU; torch, not loaded so far, reads this.
        os.environ["OMP_NUM_THREADS"] = str(os.cpu_count())
        yield from _progress_then_result(config, hub_token)

    for reference in prepare.remote(config, os.environ.get("HF_TOKEN")):
        try:
            news = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ValueError):
                reason = " ".join(str(error.cause).split())
                raise UnusableModelError(
                    f"model.source: {config.model.source} cannot be used: {reason}"
                ) from error
            raise
        if isinstance(news, Path):
            return news
        console.stage(news)
    raise RuntimeError("preparing the model ended without a model")


def _progress_then_result(config: RunConfig, hub_token: str | None) -> Iterator[str | Path]:
    """`prepare_model` as a stream: its lines of progress, then the directory."""
    from queue import SimpleQueue
    from threading import Thread

    news: SimpleQueue[str | Path | BaseException] = SimpleQueue()

    def work() -> None:
        try:
            news.put(prepare_model(config, news.put, hub_token))
        except BaseException as error:
            news.put(error)

    Thread(target=work, daemon=True).start()
    while True:
        item = news.get()
        if isinstance(item, BaseException):
            raise item
        yield item
        if isinstance(item, Path):
            return
