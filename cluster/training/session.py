"""The common frame of all commands that use actors: start Ray, prepare the model, run, and shut Ray down."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import ray

from cluster.core import ending
from cluster.core.config import RunConfig
from cluster.core.errors import PlacementError
from cluster.core.secrets import hub_variables
from cluster.models.source import prepare_model
from cluster.run_state.run_lock import RunDirectoryLostError
from cluster.runtime.connect import connect
from cluster.runtime.signals import answer_signals, answered_by, hangup_kept_from_children
from cluster.tracking import RunConsole
from cluster.training.prompts import UnusablePromptError
from learner.engine.group import LearnerStartError
from learner.state.state_files import CheckpointError
from reward.service import RewardServiceError
from rollout.fleet.supervisor import FleetLostError, first_cause
from rollout.weights.node_files import sweep_abandoned

ResultT = TypeVar("ResultT")
ENDED_WITHIN_S = 5.0
"""The time after which a process of a Ray that was shut down is killed."""


class UnusableModelError(ValueError):
    """The model cannot be built, converted or downloaded. The message gives the reason in one line."""


RUN_ERRORS = (
    UnusableModelError,
    LearnerStartError,
    PlacementError,
    FleetLostError,
    UnusablePromptError,
    CheckpointError,
    RewardServiceError,
    RunDirectoryLostError,
    TimeoutError,
    ConnectionError,
    OSError,
    ray.exceptions.RayError,
)
"""The expected failures of a command. Their message explains what happened, so no traceback is shown."""


@contextmanager
def ray_started(config: RunConfig, console: RunConsole) -> Iterator[None]:
    """Connect to the configured cluster, or start Ray on this machine. Shut Ray down at the end of the block."""
    console.stage("starting Ray")
    ending.at_forced_end(sweep_abandoned)
    try:
        with hangup_kept_from_children():
            cluster = connect(config.cluster)
        answer_signals()  # after `connect`, because Ray installs a handler that ends the process at once
        console.event(f"on {cluster}")
        yield
    finally:
        processes = _processes_of_local_ray()
        ray.shutdown()
        for late in psutil.wait_procs(processes, ENDED_WITHIN_S)[1]:
            with suppress(psutil.NoSuchProcess):
                late.kill()
        sweep_abandoned()  # a worker that was killed while it started could not delete its files in shared memory
        ending.not_at_forced_end(sweep_abandoned)


def _processes_of_local_ray() -> list[psutil.Process]:
    """Return the processes of the Ray that this process has started: actors, and their engines. They end soon after
    Ray is shut down."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.name() == "raylet":
                found += [child, *child.children(recursive=True)]
    return found


def run_to_the_end(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run `work` and return its result. If several tasks failed together, raise the first failure.

    The first signal that ends the command cancels `work`, and its exception is raised when the clean-up is done.
    """

    async def cancelled_by_signals() -> ResultT:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        with answered_by(lambda: loop.call_soon_threadsafe(task.cancel)):
            return await work

    try:
        return asyncio.run(cancelled_by_signals())
    except BaseExceptionGroup as group:
        raise first_cause(group) from group


@contextmanager
def frozen_garbage() -> Iterator[None]:
    """Exclude all objects that exist now from garbage collection while the block runs.

    A large batch triggers several full collections. Each of them would go through all modules and prompts, which blocks
    the controller for 0.2 s.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()  # otherwise extension modules report leaked objects at the end of the process


def prepare_in_cluster(config: RunConfig, console: RunConsole) -> Path:
    """Build, convert or download the model in a Ray task, so that the driver does not load torch. Return its directory.

    The task may run on another node and has that node's environment. It gets the driver's `HF_TOKEN` as an argument,
    which Ray neither logs nor lists. The token is not put into an environment, which child processes would inherit.

    Raises:
        UnusableModelError: if the model cannot be prepared.
    """

    def prepare(config: RunConfig, hub_token: str | None) -> Iterator[str | Path]:
        # Ray allows one thread per reserved CPU. Nothing else runs yet, so use all CPUs. torch reads this variable when
        # it is loaded.
        os.environ["OMP_NUM_THREADS"] = str(os.cpu_count())
        yield from _progress_then_result(config, hub_token)

    task: Any = ray.remote(num_cpus=1, num_returns="streaming", max_retries=0)(prepare)
    for reference in task.remote(config, os.environ.get("HF_TOKEN")):
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
    raise RuntimeError("the task that prepares the model ended without a result")


def _progress_then_result(config: RunConfig, hub_token: str | None) -> Iterator[str | Path]:
    """Run `prepare_model` and yield its progress messages, then the model's directory."""
    from queue import SimpleQueue
    from threading import Thread

    news: SimpleQueue[str | Path | BaseException] = SimpleQueue()

    def work() -> None:
        try:
            with hub_variables():  # this task alone may use those of its node
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
