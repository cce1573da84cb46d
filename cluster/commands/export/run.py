"""Export the model of a checkpoint as an ordinary Hugging Face directory.

A checkpoint contains the state of each learner rank, partitioned by the ZeRO stage. The same ranks gather it again, as
they do at the end of a run, so every partitioning can be exported.
"""

from __future__ import annotations

from pathlib import Path

from cluster.commands.export.plan import ExportPlan
from cluster.core.config import ObjectiveConfig
from cluster.core.files import new_directory
from cluster.run_state.checkpoints import CheckpointStore, learner_state
from cluster.run_state.run_lock import run_lock
from cluster.tracking import RunConsole
from cluster.training.actors import ActorGraph
from cluster.training.session import prepare_in_cluster, ray_started, run_to_the_end


def run_export(plan: ExportPlan, console: RunConsole) -> None:
    """Carry out `plan`. `plan.destination` appears complete or not at all; the ranks log into `RunDirectory.export`.

    Raises:
        PlacementError: if the cluster lacks the resources for the ranks.
        RunInUseError: if another process writes the destination.
        CheckpointError: if the checkpoint was deleted since it was planned.
    """
    # Nothing is trained, so no reference model is needed.
    config = plan.config.model_copy(update={"objective": ObjectiveConfig()})
    console.continue_in(plan.run.export.console_log)
    checkpoints = CheckpointStore(plan.run.checkpoints, config.checkpoint.keep)
    with (
        run_lock(plan.destination, console.event),
        checkpoints.held(plan.checkpoint),
        new_directory(plan.destination) as directory,
        ray_started(config, console),
    ):
        model = prepare_in_cluster(config, console)
        run_to_the_end(_export(ActorGraph(config, plan.run.export, model), plan, directory, console))


async def _export(graph: ActorGraph, plan: ExportPlan, directory: Path, console: RunConsole) -> None:
    async with graph.learner(probe_tokens=()) as learner:
        console.stage(f"starting {plan.config.learner.ranks} DeepSpeed rank(s)")
        await learner.start()
        console.stage(f"loading the checkpoint of step {plan.step}")
        await learner.load(learner_state(plan.checkpoint), directory.with_suffix(".resized"))
        console.stage("exporting the model")
        await learner.export(directory)
