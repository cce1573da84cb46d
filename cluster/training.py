"""`launch.py train`: sets the stage for the controller's loop, and clears it away afterwards."""

from __future__ import annotations

import itertools
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster.actor_graph import ActorGraph
from cluster.checkpoints import CheckpointStore
from cluster.config import RunConfig
from cluster.controller import Controller, LogprobGapError
from cluster.prompt_source import PromptSource
from cluster.questions import Questions, encode_questions, evaluation_prompts, training_sampling
from cluster.run_directory import RunDirectory
from cluster.stage import RUN_ERRORS, prepare_in_cluster, ray_started, run_to_the_end
from cluster.tracking import RunConsole, Tracker
from cluster.verdict_guard import VerifierFailureError

TRAINING_ERRORS = (*RUN_ERRORS, LogprobGapError, VerifierFailureError)
"""What may stop a run through no fault of this program, and says by itself what happened."""


def train(config: RunConfig, console: RunConsole) -> dict[str, Any]:
    """Run the training that `config` describes and return its summary. A run that was cut short is resumed.

    Raises:
        PlacementError, FleetLostError, LogprobGapError, VerifierFailureError, UnusablePromptError: see their names.
    """
    started = time.monotonic()
    run_directory = RunDirectory(config.run_directory)
    checkpoints = CheckpointStore(run_directory.checkpoints, config.checkpoint.keep)
    newest = checkpoints.newest()
    seen_before = run_directory.config_file.exists()
    with Tracker(
        config,
        run_directory,
        console,
        resume_step=(newest[1].step if newest else -1) if seen_before else None,
    ) as tracker:
        if seen_before:
            _announce_resumption(config, run_directory, tracker, newest[1].step if newest else None)
        run_directory.write_config(config)
        with ray_started(config, console):
            model = prepare_in_cluster(config, console)
            console.stage("reading the prompts")
            questions = encode_questions(config, model)
            graph = ActorGraph(config, run_directory, model)
            controller = run_to_the_end(_run(graph, questions, checkpoints, tracker, console))
        summary = _summary(config, run_directory, controller, time.monotonic() - started)
        tracker.finish(summary)
    return summary


def set_aside(config: RunConfig) -> Path | None:
    """Move an earlier run of this name out of the way. Returns where it is now, or None if there was none."""
    path = config.run_directory
    if not path.exists():
        return None
    stamp = f"{path.name}.{datetime.now():%Y%m%d-%H%M%S}"
    names = itertools.chain([stamp], (f"{stamp}-{count}" for count in itertools.count(2)))
    aside = next(place for name in names if not (place := path.with_name(name)).exists())
    path.rename(aside)
    return aside


def _announce_resumption(
    config: RunConfig, run_directory: RunDirectory, tracker: Tracker, step: int | None
) -> None:
    where = (
        f"resuming at step {step}" if step is not None else "no checkpoint yet: starting from the beginning"
    )
    tracker.event(f"{run_directory.path} holds an unfinished run; {where}")
    for difference in run_directory.differences(config):
        tracker.event(f"changed since: {difference}")


async def _run(
    graph: ActorGraph,
    questions: Questions,
    checkpoints: CheckpointStore,
    tracker: Tracker,
    console: RunConsole,
) -> Controller:
    """Start the actors, train, export. Whatever happens, the actors are gone afterwards."""
    config = graph.config
    probe_tokens = tuple(question.encoded.token_ids for question in questions.train[:2])
    async with (
        graph.learner(probe_tokens) as learner,
        graph.rewards() as rewards,
        graph.fleet(rewards, tracker.warning) as fleet,
    ):
        console.stage(
            f"starting {config.rollout.workers} vLLM workers and {config.learner.ranks} DeepSpeed rank(s)"
        )
        await learner.start()
        await fleet.wait_until(lambda: fleet.state.started_workers > 0)
        console.stage("training")
        controller = Controller(
            config,
            PromptSource(
                questions.train, config.seed, lambda prompt_id: training_sampling(config, prompt_id)
            ),
            evaluation_prompts(config, questions),
            fleet,
            learner,
            checkpoints,
            tracker,
        )
        await controller.run()
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
