"""Arguments and options that several commands share, the panels of the help page, and the checked configuration."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.exits import refuse
from cluster.commands.option_types import address as an_address
from cluster.configuration.chosen_defaults import Choice
from cluster.configuration.loading import load_config
from cluster.configuration.machine import Machine
from cluster.configuration.machine_checks import with_chosen_defaults
from cluster.configuration.preflight import preflight
from cluster.core.addresses import cluster_address
from cluster.core.config import ACTOR_ROLES, ActorRole, RunConfig

TRAIN_PANEL = "Train"
EVALUATE_PANEL = "Evaluate and export"
OPERATE_PANEL = "Operate a run"
JOBS_PANEL = "Clusters and jobs"
INSPECT_PANEL = "Inspect"

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as configs/demo.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as rollout.workers=4."),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN_DIRECTORY", help="Directory of a run, such as runs/demo.")
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        parser=an_address,
        help="Ray cluster to connect to (default: RAY_ADDRESS, otherwise Ray on this machine).",
    ),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Move an earlier run of this name aside and start from scratch.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; everything else goes to stderr.")]


@dataclass(frozen=True, slots=True)
class CheckedRun:
    """A configuration without problems, with the settings for its devices."""

    config: RunConfig
    choices: tuple[Choice, ...]
    """The settings that were chosen for the devices."""

    @property
    def chosen(self) -> str:
        """The choices in one line; empty if there were no choices."""
        return f"chosen by default: {', '.join(map(str, self.choices))}" if self.choices else ""


def checked_run(
    config_file: Path,
    overrides: list[str] | None,
    address: str | None = None,
    actors: Collection[ActorRole] = ACTOR_ROLES,
    machine: Machine | None = None,
) -> CheckedRun:
    """Return the configuration with the defaults of its devices, or print every problem on stderr and exit with code 2.

    Args:
        actors: The kinds of actors that the command starts. Only their resources are checked.
        machine: The machine for which the run is meant; by default this one.
    """
    at_address = [f"cluster.address={address}"] if address else []
    loaded = load_config(config_file, [*(overrides or []), *at_address])
    if not loaded.readable:
        refuse(*loaded.problems)
    cluster_address(loaded.config.cluster.address)  # refused before anything is written
    config, choices = with_chosen_defaults(loaded.config, machine)
    problems = [*loaded.problems, *preflight(config, actors, machine)]
    if problems:
        refuse(*problems)
    return CheckedRun(config, choices)


def checked_config(
    config_file: Path,
    overrides: list[str] | None,
    address: str | None = None,
    actors: Collection[ActorRole] = ACTOR_ROLES,
) -> RunConfig:
    """Return the configuration of `checked_run`."""
    return checked_run(config_file, overrides, address, actors).config
