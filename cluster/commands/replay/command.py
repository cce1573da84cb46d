"""The command line of `launch.py replay`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.option_types import number
from cluster.commands.options import OPERATE_PANEL
from cluster.core.reading import shown_path
from cluster.core.schema import CountOrZero
from cluster.core.text import visible_text

if TYPE_CHECKING:
    from cluster.commands.replay.plan import ReplayPlan
    from cluster.commands.replay.run import Replayed

SHOWN_RESPONSES = 20
"""The number of responses that are listed; the others are counted."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(rich_help_panel=OPERATE_PANEL)(replay)


def replay(
    place: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_BATCH",
            help="Directory of a run (its newest kept batch), or a file of failed_batches/.",
        ),
    ],
    step: Annotated[
        int | None,
        typer.Option(
            metavar="INTEGER",
            parser=number(CountOrZero),
            help="Step of the checkpoint with the weights; 0 is the model that the run started with (default: the "
            "newest checkpoint before the batch).",
        ),
    ] = None,
) -> None:
    """Examine the batch of an update that was not finite.

    Examples:
      python launch.py replay runs/demo
      python launch.py replay runs/demo --step 0
      python launch.py replay runs/demo/failed_batches/step_000012-1.jsonl

    The command lists the responses whose tokens, rewards, advantages or
    log-probabilities are not finite or extreme, and computes the update
    again: the loss and the gradient norm of each optimizer step. The settings
    are those of the run's config.yaml, so a changed learner.learning_rate or
    objective can be tried there.

    It computes on the CPU, in one process and without Ray, and needs memory
    for the whole model. The run's directory stays as it is.
    """
    from cluster.commands.exits import refuse
    from cluster.commands.replay.plan import plan_replay
    from learner.state.state_files import CheckpointError

    plan = plan_replay(place, step)
    for line in _headings(plan):
        typer.echo(line)

    from cluster.commands.replay.run import run_replay

    try:
        replayed = run_replay(plan)
    except CheckpointError as error:
        refuse(error)
    for line in _results(replayed):
        typer.echo(visible_text(line))


def _headings(plan: ReplayPlan) -> list[str]:
    responses = sum(len(group.responses) for group in plan.groups)
    if plan.checkpoint is not None:
        weights = shown_path(plan.checkpoint)
    else:
        weights = f"{shown_path(plan.model)} (the model that the run started with)"
    late = plan.step - 1 - plan.weights_step
    return [
        f"batch: {shown_path(plan.batch)} (step {plan.step}, {len(plan.groups)} prompts, {responses} responses)",
        f"configuration: {shown_path(plan.run.config_file)}",
        f"weights: {weights}" + (f", {late} steps before those of the batch" if late > 0 else ""),
    ]


def _results(replayed: Replayed) -> list[str]:
    lines = [f"responses with a gradient: {replayed.samples}"]
    found = replayed.findings
    lines.append(f"responses with anything that is not finite or extreme: {len(found)}")
    lines += [f"  {line}" for line in found[:SHOWN_RESPONSES]]
    if len(found) > SHOWN_RESPONSES:
        lines.append(f"  and {len(found) - SHOWN_RESPONSES} more")
    for index, step in enumerate(replayed.steps, start=1):
        norm = f"{step['grad_norm']:g}" if "grad_norm" in step else "not computed"
        lines.append(f"optimizer step {index}: loss {step['loss']:g}, gradient norm {norm}")
    lines.append(f"result: {replayed.failure or 'the update is finite with these weights and settings'}")
    return lines
