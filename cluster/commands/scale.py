"""`launch.py scale`: change the number of rollout workers of a live run."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.commands.exits import refuse
from cluster.commands.option_types import address as an_address
from cluster.commands.option_types import number
from cluster.commands.options import OPERATE_PANEL, RunArgument
from cluster.core.addresses import cluster_address
from cluster.core.schema import ActorCount
from cluster.run_state.run_directory import RunDirectory
from cluster.runtime.auth import send_no_token, send_token_anywhere, send_token_to


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(rich_help_panel=OPERATE_PANEL)(scale)


def scale(
    run_directory: RunArgument,
    rollout_workers: Annotated[
        int,
        typer.Option(
            "--rollout-workers",
            metavar="INTEGER",
            parser=number(ActorCount),
            help="New number of rollout workers.",
        ),
    ],
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            parser=an_address,
            help="Ray cluster of the run (default: the one recorded in the run directory).",
        ),
    ] = None,
    send_token: Annotated[
        bool,
        typer.Option("--send-token", help="Send Ray's token to the cluster, also to that of --address."),
    ] = False,
) -> None:
    """Change the number of rollout workers of a live run.

    Examples:
      python launch.py scale runs/demo --rollout-workers 4
      python launch.py scale runs/demo --rollout-workers 1

    The command returns at once, and training continues. New workers start,
    load the current weights and then take prompts. Removed workers finish
    the prompts that they hold first.
    """
    given = address is not None
    if address is not None:
        cluster_address(address)
    else:
        address = RunDirectory.existing(run_directory).read_ray_address()
    # Only the address that the run has recorded is known to be its own.
    if send_token:
        send_token_anywhere()
    elif given:
        send_no_token()
    elif address is not None:
        send_token_to(address)

    from cluster.training.control import NoLiveRunError, ScalingRefusedError
    from cluster.training.control import scale as scale_run

    try:
        typer.echo(scale_run(run_directory, rollout_workers, address))
    except (NoLiveRunError, ScalingRefusedError, TimeoutError) as error:
        refuse(error)
