"""What a job server is told about a run: the command, its environment and what Ray shows to whoever may list jobs."""

from __future__ import annotations

import re
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.commands.jobs.package import Package
from cluster.commands.jobs.server import (
    JobServer,
    JobServerError,
    NotReadyError,
    explained,
    has_ended,
    run_of,
)
from cluster.core.config import RunConfig
from cluster.models.source import locate
from cluster.runtime.job import KEYS_VARIABLE

STOP_GRACE_S = 60
"""How long a job that is stopped may take to clear its actors away."""
STARTING_S = 120.0
"""A cluster that was just started takes jobs only after a while."""
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


class SubmissionRefusedError(ValueError):
    """What was asked for cannot be submitted; says why in one line."""


@dataclass(frozen=True, slots=True)
class DriverPlace:
    """Where the driver of the job is to run. If nothing is asked for, Ray takes the head node."""

    cpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Submission:
    """A run, ready to be submitted; more than once, if it must be."""

    config: RunConfig
    package: Package
    overrides: tuple[str, ...]
    environment: Mapping[str, str]
    keys: Mapping[str, str] = field(repr=False)
    """By the name of their environment variable. They are sent sealed."""
    place: DriverPlace = DriverPlace()
    fresh: bool = False
    """Whether an earlier run of this name is moved aside first."""

    @property
    def entrypoint(self) -> str:
        """The job's command. `exec` lets Ray's stop signal reach Python itself, and not a shell."""
        options = ["--fresh"] if self.fresh else []
        return "exec " + shlex.join(
            ["python", "launch.py", "train", self.package.config, *self.overrides, *options]
        )

    @property
    def environment_variables(self) -> dict[str, str]:
        """Ray stores them, and shows them to everyone who may list jobs: no key is among them."""
        return {
            # Ctrl-C is what a run understands: it clears its actors away, and says how to go on.
            "RAY_JOB_STOP_SIGNAL": "SIGINT",
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S),
            **({KEYS_VARIABLE: " ".join(sorted(self.keys))} if self.keys else {}),
            **self.environment,
        }

    @property
    def metadata(self) -> dict[str, str]:
        return {"run": self.config.name, "run_directory": str(self.config.run_directory)}

    def again(self) -> Submission:
        """The same run, to go on with what the job before has left."""
        return replace(self, fresh=False)


def submit(server: JobServer, submission: Submission, number: int = 1) -> str:
    """Send the package, start the job, and return its id.

    Args:
        number: of this try.

    Raises:
        JobServerError, PackageRefusedError: what their names say.
    """
    attempt = "" if number == 1 else f"-try{number}"
    job = f"{submission.config.name}-{time.strftime('%Y%m%d-%H%M%S')}{attempt}"
    deadline = time.monotonic() + STARTING_S
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "working_tree.zip")
        submission.package.write(archive)
        while True:
            try:
                return _submit(server, submission, job, archive)
            except NotReadyError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(1)


def _submit(server: JobServer, submission: Submission, job: str, archive: Path) -> str:
    place = submission.place
    with explained(server.address):
        return server.client.submit_job(
            entrypoint=submission.entrypoint,
            submission_id=job,
            runtime_env={"working_dir": str(archive), "env_vars": submission.environment_variables},
            metadata=submission.metadata,
            entrypoint_num_cpus=place.cpus or None,
            entrypoint_resources=dict(place.resources) or None,
            entrypoint_label_selector=dict(place.labels) or None,
        )


def refuse_live_run(server: JobServer, name: str) -> None:
    """Raises:
    JobServerError: a job of the cluster trains a run of this name already.
    """
    for job in server.jobs():
        if run_of(job) == name and not has_ended(job):
            raise JobServerError(
                f"job {job.submission_id} is the run {name} already: look at it with launch.py logs {name} --follow, "
                f"end it with launch.py stop {name}, or submit another with name=NAME"
            )


def cluster_overrides(config: RunConfig, overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides that the job is given. Its working directory is the package, which Ray throws away: relative places
    of the run directory and of a model's files become the absolute ones that they are here."""
    absolute = {"directory": str(config.directory.expanduser().absolute())}
    source = config.model.source
    if source != "starter" and not source.startswith("package:"):
        located = locate(config.model)
        if located.kind in ("directory", "gguf"):
            absolute["model.source"] = located.location
    others = [override for override in overrides if override.partition("=")[0] not in absolute]
    return (*others, *(f"{name}={place}" for name, place in absolute.items()))


def environment(pairs: Sequence[str]) -> dict[str, str]:
    """From `NAME=VALUE` each.

    Raises:
        SubmissionRefusedError: one is not of that form, or looks like a secret.
    """
    return _pairs("--env", pairs, refuse_secrets=True)


def labels(pairs: Sequence[str]) -> dict[str, str]:
    """From `LABEL=VALUE` each.

    Raises:
        SubmissionRefusedError: one is not of that form.
    """
    return _pairs("--driver-label", pairs)


def resources(pairs: Sequence[str]) -> dict[str, float]:
    """From `NAME=AMOUNT` each.

    Raises:
        SubmissionRefusedError: one is not of that form.
    """
    try:
        return {name: float(amount) for name, amount in _pairs("--driver-resource", pairs).items()}
    except ValueError as error:
        raise SubmissionRefusedError(f"--driver-resource takes NAME=AMOUNT ({error})") from error


def _pairs(option: str, pairs: Sequence[str], refuse_secrets: bool = False) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise SubmissionRefusedError(f"{option} takes NAME=VALUE, not {pair!r}")
        if refuse_secrets and _SECRET_NAME.search(name):
            raise SubmissionRefusedError(
                f"{option} {name}: Ray shows a job's environment to everyone who may list jobs; set {name} in this "
                f"command's own environment and give --key {name}, and it is sent sealed"
            )
        found[name] = value
    return found
