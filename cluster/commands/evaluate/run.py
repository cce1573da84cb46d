"""Run an evaluation: the rollout workers and reward actors of a run, without a learner."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.core.config import RunConfig
from cluster.core.errors import RefusedError
from cluster.core.reading import shown_path
from cluster.core.types import Prompt, ScoredGroup, Split
from cluster.metrics.evaluation import categories_of, evaluation_report
from cluster.run_state.run_directory import RunDirectory
from cluster.run_state.run_lock import RunLock, run_lock
from cluster.tracking import RunConsole
from cluster.tracking.evaluation_files import write_evaluation
from cluster.training.actors import ActorGraph
from cluster.training.prompts import evaluation_prompts, load_dataset
from cluster.training.session import prepare_in_cluster, ray_started, run_to_the_end
from rollout.fleet.state import FleetState


@dataclass(frozen=True, slots=True)
class Sample:
    """Scored responses, and the time that they took."""

    groups: list[ScoredGroup]
    seconds: float
    """The time of sampling and scoring, without the start of the actors."""
    workers: int
    """The number of rollout workers that were ready at its beginning."""


def run_evaluation(config: RunConfig, split: Split, console: RunConsole) -> dict[str, Any]:
    """Sample and score the responses that `config.evaluation` requests, and return the numbers of `evaluation_report`.

    The actors' logs, the numbers and all responses are written to `RunDirectory.evaluation`, and nothing else.

    Raises:
        PlacementError, FleetLostError, UnusablePromptError, RunInUseError: as documented there.
        RefusedError: as in `evaluate_in`.
    """
    directory = RunDirectory(config.run_directory).evaluation
    _, report = evaluate_in(directory, config, split, console)
    return report


def evaluate_in(
    directory: RunDirectory,
    config: RunConfig,
    split: Split,
    console: RunConsole,
    *,
    whole_fleet: bool = False,
) -> tuple[Sample, dict[str, Any]]:
    """Do the same as `run_evaluation` in another directory than that of evaluations. Return the responses as well.

    Args:
        whole_fleet: Whether to wait for all rollout workers before sampling, so that the time is that of the fleet.

    Raises:
        RefusedError: if `directory` is that of a run.
    """
    if directory.config_file.exists():
        raise RefusedError(
            f"{shown_path(directory.path)}: this is the directory of a run; choose another name with name=NAME"
        )
    with run_lock(directory.path, console.event) as lock:
        directory.refuse_obstacles()
        console.continue_in(directory.console_log)
        return _evaluated(config, split, console, directory, lock, whole_fleet)


def _evaluated(
    config: RunConfig,
    split: Split,
    console: RunConsole,
    directory: RunDirectory,
    lock: RunLock,
    whole_fleet: bool,
) -> tuple[Sample, dict[str, Any]]:
    with ray_started(config, console):
        model = prepare_in_cluster(config, console)
        console.stage("reading the prompts")
        prompts = evaluation_prompts(config, load_dataset(config, model), split)
        graph = ActorGraph(config, directory, model)
        sample = run_to_the_end(_sample(graph, prompts, console, whole_fleet))
    category_of = categories_of(config)
    report = evaluation_report(config, split, sample.groups, category_of)
    lock.check()
    write_evaluation(directory.evaluation_stem(), report, sample.groups, category_of)
    return sample, report


async def _sample(
    graph: ActorGraph, prompts: Sequence[Prompt], console: RunConsole, whole_fleet: bool
) -> Sample:
    """Start the actors and sample responses to `prompts`. The actors end with this function, even if it fails."""
    async with graph.rewards() as rewards, graph.fleet(rewards, console.warning) as fleet:
        console.stage(f"starting {graph.config.rollout.workers} vLLM workers")
        fleet.serve_as_loaded()
        await fleet.wait_until(lambda: is_ready(fleet.state, whole_fleet))
        console.stage(f"sampling {len(prompts)} × {prompts[0].sampling.responses} responses")
        workers, started = fleet.state.healthy, time.monotonic()
        groups = await fleet.sample(prompts)
        return Sample(groups, time.monotonic() - started, workers)


def is_ready(state: FleetState, whole_fleet: bool) -> bool:
    """Return whether one rollout worker, or with `whole_fleet` all that have not been given up, can sample."""
    return state.healthy > 0 and (not whole_fleet or state.healthy >= state.size)
