"""`launch.py check`: find every mistake of a configuration without starting anything."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.commands.exits import refuse
from cluster.commands.memory_table import print_memory
from cluster.commands.options import INSPECT_PANEL, Address, ConfigFile, Overrides, checked_run
from cluster.configuration.machine import Machine, parse_machine
from cluster.configuration.machine_checks import target_machine
from cluster.configuration.task_checks import task_notes
from cluster.core.addresses import cluster_address
from cluster.core.config import RunConfig
from cluster.core.problem import Problem
from cluster.runtime.auth import send_token_to


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(rich_help_panel=INSPECT_PANEL)(check)


def check(
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: Address = None,
    cluster: Annotated[
        bool,
        typer.Option("--cluster", help="Also connect to the Ray cluster and compare its resources."),
    ] = False,
    machine: Annotated[
        str | None,
        typer.Option(help="Check for this machine in place of the present one, such as 8xH100-80G."),
    ] = None,
) -> None:
    """Validate a configuration without starting anything.

    Every mistake is one line. The estimate of the memory is printed as a table.

    Examples:
      python launch.py check configs/demo.yaml
      python launch.py check configs/gpu_1x80g.yaml --machine 1xH100-80G
      python launch.py check configs/demo.yaml --cluster --address HOST:6379
    """
    described = _described(machine)
    checked = checked_run(config_file, overrides, address, machine=described)
    config = checked.config
    if cluster:
        typer.echo(f"{config_file}: the cluster has the resources for it. {_checked_cluster(config)}")
    typer.echo(f"{config_file}: ok. {arithmetic(config)}")
    if checked.chosen:
        typer.echo(checked.chosen)
    print_memory(config, target_machine(config, described))
    for note in task_notes(config):
        typer.echo(f"note: {note}")


def _described(machine: str | None) -> Machine | None:
    """Return the machine that the option describes, or exit with code 2."""
    try:
        return None if machine is None else parse_machine(machine)
    except ValueError as error:
        refuse(f"--machine: {error}")


def arithmetic(config: RunConfig) -> str:
    """Return the batch sizes of a run in one sentence."""
    rollout, learner = config.rollout, config.learner
    at_most = "" if rollout.adaptive_budget is None else f" (up to {rollout.adaptive_budget})"
    return (
        f"{config.steps} steps of {rollout.prompts_per_step} prompts × {rollout.responses_per_prompt} responses = "
        f"{config.responses_per_step} responses{at_most}, in {config.optimizer_steps_per_batch} optimizer step(s) over "
        f"{learner.ranks} learner rank(s), micro-batches of up to {learner.micro_batch_tokens} tokens; "
        f"{rollout.workers} workers"
    )


def _checked_cluster(config: RunConfig) -> str:
    """Return a description of the cluster, or print every shortfall on stderr and exit with code 2."""
    address = cluster_address(config.cluster.address)
    if not address:
        refuse("--cluster needs the --address of the cluster, such as HOST:6379 or auto")
    send_token_to(address)
    try:
        problems, description = check_cluster(config)
    except ConnectionError as error:
        refuse(error)
    if problems:
        refuse(*problems)
    return description


def check_cluster(config: RunConfig) -> tuple[list[Problem], str]:
    """Return the resources that the configured cluster lacks for `config`, and a description of the cluster.

    Raises:
        ConnectionError: if the cluster cannot be reached, or does not accept this process.
    """
    import ray

    from cluster.runtime.capacity import needs_of, shortfalls
    from cluster.runtime.connect import cluster_nodes, connect

    connect(config.cluster)
    try:
        nodes = cluster_nodes()
        free = ray.available_resources()
    finally:
        ray.shutdown()
    totals = {kind: sum(node.resources.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
    resources = ", ".join(
        f"{total:g} {kind} ({free.get(kind, 0):g} free)" for kind, total in totals.items() if total
    )
    return list(shortfalls(needs_of(config), nodes)), f"{len(nodes)} node(s), {resources}"
