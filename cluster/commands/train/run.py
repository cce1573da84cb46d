"""Run a training: prepare what the controller's loop needs, run the loop, and release everything afterwards."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster.core.config import RunConfig
from cluster.core.errors import RefusedError
from cluster.core.project import code_version
from cluster.run_state.checkpoints import Checkpoint, CheckpointStore, learner_state
from cluster.run_state.run_directory import RunDirectory
from cluster.run_state.run_lock import RunInUseError, RunLock, run_lock
from cluster.runtime.connect import reachable_address
from cluster.tracking import RunConsole, Tracker, read_metrics
from cluster.tracking.prometheus import RayMetrics
from cluster.training.actors import ActorGraph
from cluster.training.batch import (
    BatchNotFilledError,
    LogprobGapError,
    MissingLogprobsError,
    VerifierFailureError,
)
from cluster.training.control import RunIsLiveError, listening
from cluster.training.controller import Controller
from cluster.training.examples import ExamplePrompts, load_examples
from cluster.training.informative import prompt_source, refuse_other_selection
from cluster.training.prompts import Dataset, evaluation_prompts, load_dataset, training_sampling
from cluster.training.session import (
    RUN_ERRORS,
    frozen_garbage,
    prepare_in_cluster,
    ray_started,
    run_to_the_end,
)
from learner.engine.finite import NonFiniteError
from learner.state.state_description import StateDescription, obstacle
from learner.state.state_files import CheckpointError

TRAINING_ERRORS = (
    *RUN_ERRORS,
    LogprobGapError,
    NonFiniteError,
    MissingLogprobsError,
    BatchNotFilledError,
    VerifierFailureError,
    RunIsLiveError,
    RefusedError,
)
"""The expected failures of a run. Their message explains what happened, so no traceback is shown."""


def run_training(config: RunConfig, console: RunConsole) -> dict[str, Any]:
    """Run the training that `config` describes and return its summary. An interrupted run is resumed.

    Raises:
        PlacementError, FleetLostError, LogprobGapError, NonFiniteError, MissingLogprobsError, BatchNotFilledError,
            VerifierFailureError, RunIsLiveError, UnusablePromptError, CheckpointError, RunInUseError,
            RunDirectoryLostError: as documented there.
    """
    run_directory = RunDirectory(config.run_directory)
    with run_lock(run_directory.path, console.event) as lock:
        return _trained(config, run_directory, lock, console)


def _trained(
    config: RunConfig, run_directory: RunDirectory, lock: RunLock, console: RunConsole
) -> dict[str, Any]:
    started = time.monotonic()
    refuse_damaged(run_directory)
    checkpoints = CheckpointStore(run_directory.checkpoints, config.checkpoint.keep)
    console.stage("looking for a checkpoint to resume from")
    newest = checkpoints.newest_intact(console.warning)
    if newest is not None:
        _refuse_other_settings(newest, config)
    seen_before = run_directory.config_file.exists()
    with Tracker(
        config,
        run_directory,
        console,
        resume_step=newest.progress.step if newest else -1 if seen_before else None,
        wandb_run_id=newest.progress.wandb_run_id if newest else None,
        lock=lock,
    ) as tracker:
        if seen_before:
            _announce_resumption(config, run_directory, tracker, newest.progress.step if newest else None)
        run_directory.write_config(config)
        run_directory.write_code_version(code_version())
        with ray_started(config, console):
            run_directory.write_ray_address(reachable_address())
            tracker.attach(RayMetrics(config.name))
            model = prepare_in_cluster(config, console)
            console.stage("reading the prompts")
            dataset = load_dataset(config, model)
            examples = load_examples(config, model)
            graph = ActorGraph(config, run_directory, model)
            with directory_loss_first(tracker):
                controller = run_to_the_end(
                    _run(graph, dataset, examples, checkpoints, newest, tracker, console)
                )
        summary = _summary(config, run_directory, controller, time.monotonic() - started)
        tracker.finish(summary)
    return summary


@contextmanager
def directory_loss_first(tracker: Tracker) -> Iterator[None]:
    """Let a failure of the block be the loss of the run directory if that is lost, whatever has failed because of it.

    Raises:
        RunDirectoryLostError: if the block fails and the directory is gone, or no longer this process's.
    """
    try:
        yield
    except TRAINING_ERRORS:
        tracker.check()
        raise


def refuse_damaged(run: RunDirectory) -> None:
    """Read everything that a resumption reads of an earlier run, before anything of it is changed, and look for
    obstacles to what the run is going to write, before it has taken its time.

    Raises:
        RefusedError: if a part of it cannot be read or written.
    """
    run.refuse_obstacles()
    run.read_wandb_run_id()
    with suppress(FileNotFoundError):
        run.read_config()
    with suppress(FileNotFoundError):
        run.read_summary()
    for file, increasing in ((run.metrics_file, True), (run.superseded_metrics_file, False)):
        for _ in read_metrics(file, increasing=increasing):
            pass


def set_aside(config: RunConfig) -> Path | None:
    """Rename the directory of an earlier run of this name. Return the new path, or None if no such run exists.

    Raises:
        RunInUseError: if a process reads one of its checkpoints. The directory stays.
    """
    path = config.run_directory
    if not path.exists():
        return None
    _refuse_readers(path, path)
    stamp = f"{path.name}.{datetime.now():%Y%m%d-%H%M%S}"
    names = itertools.chain([stamp], (f"{stamp}-{count}" for count in itertools.count(2)))
    aside = next(free for name in names if not (free := path.with_name(name)).exists())
    path.rename(aside)
    try:
        _refuse_readers(path, aside)
    except RunInUseError:
        aside.rename(path)
        raise
    return aside


def _refuse_readers(path: Path, now_at: Path) -> None:
    """Refuse if a process reads a checkpoint of the run in `path`, whose directory is `now_at`."""
    if CheckpointStore(RunDirectory(now_at).checkpoints, keep=1).readers():
        raise RunInUseError(
            f"{path} cannot be moved aside while launch.py export reads it: wait until it has ended"
        )


def _refuse_other_settings(newest: Checkpoint, config: RunConfig) -> None:
    """Compare the checkpoint's description with the settings before anything starts.

    The model itself is compared later, when it is loaded.

    Raises:
        CheckpointError: if the run cannot resume from the checkpoint with these settings.
    """
    refuse_other_selection(newest, config.task.selection)
    saved = StateDescription.read(learner_state(newest.path))
    if reason := obstacle(saved, config.model.dtype, config.learner.zero_stage):
        raise CheckpointError(
            f"{newest.path}: cannot resume from this checkpoint: {reason}, or train under another name"
        )


def _announce_resumption(
    config: RunConfig, run_directory: RunDirectory, tracker: Tracker, step: int | None
) -> None:
    where = (
        f"resuming at step {step}" if step is not None else "it has no checkpoint yet: starting from scratch"
    )
    tracker.event(f"{run_directory.path} contains an unfinished run; {where}")
    for difference in run_directory.differences(config):
        tracker.event(f"changed setting: {difference}")


async def _run(
    graph: ActorGraph,
    dataset: Dataset,
    examples: ExamplePrompts | None,
    checkpoints: CheckpointStore,
    start: Checkpoint | None,
    tracker: Tracker,
    console: RunConsole,
) -> Controller:
    """Start the actors, train and export. The actors end with this function, even if it fails."""
    config = graph.config
    # After an update that was not finite, the same responses would lead there again.
    draw = len(graph.run_directory.failed_batch_files)
    probe_tokens = tuple(problem.encoded.token_ids for problem in dataset.train[:2])
    console.stage(
        f"starting {config.rollout.workers} vLLM workers and {config.learner.ranks} DeepSpeed rank(s)"
    )
    async with (
        graph.training(probe_tokens, tracker.warning) as (learner, fleet),
        listening(config.name, fleet, tracker.event, tracker.warning),
    ):
        await fleet.wait_until(lambda: fleet.state.started_workers > 0)
        console.stage("training")
        controller = Controller(
            config,
            prompt_source(
                config.task.selection,
                dataset.train,
                config.seed,
                lambda prompt_id: training_sampling(config, prompt_id, draw),
            ),
            evaluation_prompts(config, dataset),
            fleet,
            learner,
            checkpoints,
            tracker,
            start,
            examples,
        )
        with frozen_garbage():
            await controller.run()
        tracker.check()
        console.stage("exporting the model")
        await learner.export(graph.run_directory.final_model)
    return controller


def _summary(
    config: RunConfig, run_directory: RunDirectory, controller: Controller, wall_time_s: float
) -> dict[str, Any]:
    steps = sorted(controller.pass_at_1)
    return {
        "pass_at_1_before": controller.pass_at_1[steps[0]],
        "pass_at_1_after": controller.pass_at_1[steps[-1]],
        "steps": controller.step,
        "training_time_s": round(controller.elapsed_s, 1),
        "wall_time_s": round(wall_time_s, 1),
        "run_directory": str(run_directory.path),
        "final_model": str(run_directory.final_model),
    }
