"""`launch.py export`: the model of a checkpoint as an ordinary Hugging Face directory.

A checkpoint holds what each learner rank had, cut up by the ZeRO stage. The same ranks put it together again, as they
do at the end of a run, so it does not matter how it was cut.
"""

from __future__ import annotations

from pathlib import Path

from cluster.commands.export_plan import ExportPlan
from cluster.core.config import ObjectiveConfig
from cluster.core.files import new_directory
from cluster.run_state.checkpoints import learner_state
from cluster.tracking import RunConsole
from cluster.training.actors import ActorGraph
from cluster.training.session import prepare_in_cluster, ray_started, run_to_the_end


def export(plan: ExportPlan, console: RunConsole) -> None:
    """Carry `plan` out. `plan.destination` appears whole or not at all; the ranks' logs go to the run's own.

    Raises:
        PlacementError: the cluster has no room for the ranks.
    """
    # Nothing is learned: no reference model is needed for it.
    config = plan.config.model_copy(update={"objective": ObjectiveConfig()})
    with new_directory(plan.destination) as directory, ray_started(config, console):
        model = prepare_in_cluster(config, console)
        run_to_the_end(_export(ActorGraph(config, plan.run, model), plan, directory, console))


async def _export(graph: ActorGraph, plan: ExportPlan, directory: Path, console: RunConsole) -> None:
    async with graph.learner(probe_tokens=()) as learner:
        console.stage(f"starting {plan.config.learner.ranks} DeepSpeed rank(s)")
        await learner.start()
        console.stage(f"loading the checkpoint of step {plan.step}")
        await learner.load(learner_state(plan.checkpoint), directory.with_suffix(".resized"))
        console.stage("exporting the model")
        await learner.export(directory)
