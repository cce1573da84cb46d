"""`launch.py doctor`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.commands.exits import EXIT_FAILED, refuse
from cluster.configuration.loading import load_config
from cluster.runtime.auth import send_token_to


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(doctor)


def doctor(
    config_file: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="Look also at what this run needs.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster, HOST:6379 or auto: look at each of its nodes.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """See whether everything is there that a run needs, and how to mend what is not.

    For example:
      python launch.py doctor
      python launch.py doctor configs/demo.yaml
      python launch.py doctor configs/demo.yaml --address HOST:6379

    Versions, GPUs, memory, disk, shared memory, compiler, ports, Ray, W&B; with a configuration also its model, its
    data and the room that it needs. Exit code 1 if something must be mended first.
    """
    config = None
    if config_file is not None:
        loaded = load_config(config_file, overrides or [])
        if loaded.problems:
            refuse(*loaded.problems)
        config = loaded.config
    address = address or (config.cluster.address if config else None) or os.environ.get("RAY_ADDRESS")
    if address:
        send_token_to(address)
        if config:  # what the run would join
            config = config.model_copy(
                update={"cluster": config.cluster.model_copy(update={"address": address})}
            )

    from cluster.commands.doctor.examination import examine
    from cluster.commands.doctor.report import as_json as findings_as_json
    from cluster.commands.doctor.report import table, verdict

    console = Console(highlight=False)
    with Console(stderr=True).status("") as status:
        findings = list(examine(config, address, status.update))
    if as_json:
        typer.echo(json.dumps(findings_as_json(findings)))
    else:
        console.print(table(findings))
        console.print(verdict(findings))
    if any(finding.level == "fail" for _, finding in findings):
        raise typer.Exit(EXIT_FAILED)
