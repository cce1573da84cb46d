"""Run an evaluation: the rollout workers and reward actors of a run, without a learner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.core.config import RunConfig
from cluster.core.types import Prompt, ScoredGroup, Split
from cluster.metrics.evaluation import categories_of, evaluation_report
from cluster.run_state.run_directory import RunDirectory
from cluster.run_state.run_lock import RunLock, run_lock
from cluster.tracking import RunConsole
from cluster.tracking.evaluation_files import write_evaluation
from cluster.training.actors import ActorGraph
from cluster.training.prompts import evaluation_prompts, load_dataset
from cluster.training.session import prepare_in_cluster, ray_started, run_to_the_end


def run_evaluation(config: RunConfig, split: Split, console: RunConsole) -> dict[str, Any]:
    """Sample and score the responses that `config.evaluation` requests, and return the numbers of `evaluation_report`.

    The actors' logs, the numbers and all responses are written to `RunDirectory.evaluation`, and nothing else.

    Raises:
        PlacementError, FleetLostError, UnusablePromptError, RunInUseError: as documented there.
    """
    directory = RunDirectory(config.run_directory).evaluation
    with run_lock(directory.path, console.event) as lock:
        console.continue_in(directory.console_log)
        return _evaluated(config, split, console, directory, lock)


def _evaluated(
    config: RunConfig, split: Split, console: RunConsole, directory: RunDirectory, lock: RunLock
) -> dict[str, Any]:
    with ray_started(config, console):
        model = prepare_in_cluster(config, console)
        console.stage("reading the prompts")
        prompts = evaluation_prompts(config, load_dataset(config, model), split)
        groups = run_to_the_end(_sample(ActorGraph(config, directory, model), prompts, console))
    category_of = categories_of(config)
    report = evaluation_report(config, split, groups, category_of)
    lock.check()
    write_evaluation(directory.evaluation_stem(), report, groups, category_of)
    return report


async def _sample(graph: ActorGraph, prompts: Sequence[Prompt], console: RunConsole) -> list[ScoredGroup]:
    """Start the actors and sample responses to `prompts`. The actors end with this function, even if it fails."""
    async with graph.rewards() as rewards, graph.fleet(rewards, console.warning) as fleet:
        console.stage(f"starting {graph.config.rollout.workers} vLLM workers")
        fleet.serve_as_loaded()
        await fleet.wait_until(lambda: fleet.state.healthy > 0)
        console.stage(f"sampling {len(prompts)} × {prompts[0].sampling.responses} responses")
        return await fleet.sample(prompts)
