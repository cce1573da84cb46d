"""The command line of `launch.py doctor`, and the table of its findings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.commands.exits import EXIT_FAILED, refuse
from cluster.commands.option_types import address as an_address
from cluster.commands.options import INSPECT_PANEL, AsJson, Overrides
from cluster.configuration.loading import load_config
from cluster.core.addresses import cluster_address
from cluster.runtime.auth import send_token_to

if TYPE_CHECKING:
    from cluster.commands.doctor.assessment import Level, Located

_MARKS: dict[Level, tuple[str, str]] = {
    "ok": ("✓ ok", "green"),
    "warn": ("! warn", "yellow"),
    "fail": ("✗ fail", "red"),
}


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(rich_help_panel=INSPECT_PANEL)(doctor)


def doctor(
    config_file: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="YAML file of a run, to check its needs too.")
    ] = None,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            parser=an_address,
            help="Ray cluster, HOST:6379 or auto, whose nodes to examine (default: RAY_ADDRESS).",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that everything a run needs is present, and say how to fix what is not.

    Examples:
      python launch.py doctor
      python launch.py doctor configs/demo.yaml
      python launch.py doctor configs/demo.yaml --address HOST:6379

    The command checks versions, GPUs, memory, disk, shared memory, the
    compiler, ports, Ray and W&B; with a configuration also the model, the data
    and the resources. The exit code is 1 if something must be fixed.
    """
    config = None
    if config_file is not None:
        loaded = load_config(config_file, overrides or [])
        if loaded.problems:
            refuse(*loaded.problems)
        config = loaded.config
    address = cluster_address(address or (config.cluster.address if config else None))
    if address:
        send_token_to(address)
        if config:  # the cluster that the run would connect to
            config = config.model_copy(
                update={"cluster": config.cluster.model_copy(update={"address": address})}
            )

    from cluster.commands.doctor.examination import examine

    with Console(stderr=True).status("") as status:
        findings = list(examine(config, address, status.update))
    if as_json:
        typer.echo(json.dumps([{"where": where, **asdict(finding)} for where, finding in findings]))
    else:
        console = Console(highlight=False)
        console.print(_table(findings))
        console.print(_verdict(findings))
    if any(finding.level == "fail" for _, finding in findings):
        raise typer.Exit(EXIT_FAILED)


def _table(findings: Sequence[Located]) -> Table:
    """Return one row for each finding, in their order."""
    table = Table(box=None, pad_edge=False, header_style="cyan", padding=(0, 2, 0, 0))
    for heading in ("", "where", "what", "found"):
        table.add_column(heading, overflow="fold")
    for where, finding in findings:
        mark, style = _MARKS[finding.level]
        found = Text(finding.found)
        if finding.fix:
            found.append(f"\n→ {finding.fix}", style="bold")
        table.add_row(Text(mark, style), Text(where), Text(finding.what), found)
    return table


def _verdict(findings: Sequence[Located]) -> str:
    counts = {level: sum(finding.level == level for _, finding in findings) for level in _MARKS}
    if counts["fail"]:
        return f"not ready: {counts['fail']} problem(s) to fix, {counts['warn']} warning(s)"
    return "ready" + (f", with {counts['warn']} warning(s)" if counts["warn"] else "")
