"""Submit a run as a job: its command, its environment, and its keys, which are sent sealed after it."""

from __future__ import annotations

import netrc
import os
import platform
import re
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cluster.commands.jobs.package import Package
from cluster.commands.jobs.server import (
    JobServer,
    JobServerError,
    NotReadyError,
    explained,
    has_ended,
    run_of,
)
from cluster.commands.option_types import read_number
from cluster.core.config import RunConfig
from cluster.core.schema import NotNegative
from cluster.core.text import plain_text
from cluster.models.source import locate
from cluster.runtime.job import KEYS_VARIABLE, SENT_BY_DEFAULT, announced, package_name, seal

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

STOP_GRACE_S = 60
"""The time that a stopped job has to end its actors."""
STARTING_S = 120.0
"""The time that a new cluster may need before it accepts jobs."""
DRIVER_TIMEOUT_S = 600.0
"""The time that the driver of a job may need to start. The cluster may have to add a node for it."""
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


class SubmissionRefusedError(ValueError):
    """The run cannot be submitted. The message is one line with the reason."""


class LiveRunError(JobServerError):
    """Another job of the cluster trains the run."""


@dataclass(frozen=True, slots=True)
class DriverPlacement:
    """The node on which the driver of the job runs. Without any request, Ray takes the head node."""

    cpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Submission:
    """A run that is ready to be submitted, several times if necessary."""

    config: RunConfig
    package: Package
    overrides: tuple[str, ...]
    environment: Mapping[str, str]
    keys: Mapping[str, str] = field(repr=False)
    """The keys by the name of their environment variable. They are sent sealed."""
    placement: DriverPlacement = DriverPlacement()
    fresh: bool = False
    """True if an earlier run of this name is moved aside first."""

    @property
    def entrypoint(self) -> str:
        """The command of the job. With `exec` Ray's stop signal reaches Python itself instead of a shell."""
        options = ["--fresh"] if self.fresh else []
        return "exec " + shlex.join(
            ["python", "launch.py", "train", self.package.config, *self.overrides, *options]
        )

    @property
    def environment_variables(self) -> dict[str, str]:
        """The environment of the job. Ray shows it to every user who may list jobs, so it contains no key."""
        return {
            # A run handles SIGINT (Ctrl-C): it ends its actors and says how to resume.
            "RAY_JOB_STOP_SIGNAL": "SIGINT",
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S),
            **({KEYS_VARIABLE: " ".join(sorted(self.keys))} if self.keys else {}),
            **self.environment,
        }

    @property
    def metadata(self) -> dict[str, str]:
        """The name and the directory of the run, and the process that submits it, which the job server keeps with the
        job."""
        return {
            "run": self.config.name,
            "run_directory": str(self.config.run_directory),
            "submitter": f"process {os.getpid()} on {platform.node()}",
        }

    def again(self) -> Submission:
        """Return the same run for another job, which resumes it."""
        return replace(self, fresh=False)


def new_id(submission: Submission, number: int = 1) -> str:
    """Return an id for a job of the run.

    Args:
        number: The number of this job among those of the run.
    """
    attempt = "" if number == 1 else f"-try{number}"
    return f"{submission.config.name}-{time.strftime('%Y%m%d-%H%M%S')}{attempt}"


def submit(server: JobServer, submission: Submission, job: str | None = None) -> str:
    """Send the package, start the job, and return its id. One run has one live job.

    Args:
        job: The id of the job; by default a new one.

    Raises:
        JobServerError: if the server is unreachable or refuses the job, or if another job trains the run. Then this one
            is not started, or is stopped.
        PackageRefusedError: if the package is too large.
    """
    job = job or new_id(submission)
    if any(own.submission_id == job and _is_own(own, submission) for own in server.jobs()):
        return job  # an earlier attempt arrived, and its answer was lost
    refuse_live_run(server, submission.config.name)
    _send(server, submission, job)
    try:
        # Two that looked at the same moment have seen nothing. Both jobs are known by now, and one of the two stays.
        refuse_live_run(server, submission.config.name, job)
    except LiveRunError:
        server.stop(job)
        raise
    return job


def _is_own(job: JobDetails, submission: Submission) -> bool:
    return (job.metadata or {}).get("submitter") == submission.metadata["submitter"]


def _send(server: JobServer, submission: Submission, job: str) -> None:
    """Send the package and start the job, as soon as the cluster accepts jobs."""
    deadline = time.monotonic() + STARTING_S
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "working_tree.zip")
        submission.package.write(archive)
        while True:
            try:
                _start(server, submission, job, archive)
                return
            except NotReadyError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(1)


def _start(server: JobServer, submission: Submission, job: str, archive: Path) -> None:
    placement = submission.placement
    with explained(server.address):
        server.client.submit_job(
            entrypoint=submission.entrypoint,
            submission_id=job,
            runtime_env={"working_dir": str(archive), "env_vars": submission.environment_variables},
            metadata=submission.metadata,
            entrypoint_num_cpus=placement.cpus or None,
            entrypoint_resources=dict(placement.resources) or None,
            entrypoint_label_selector=dict(placement.labels) or None,
        )


def refuse_live_run(server: JobServer, name: str, own: str | None = None) -> None:
    """Refuse a run whose name is in use.

    Args:
        own: The id of a job that was just submitted. Jobs that started after it do not count.

    Raises:
        LiveRunError: if a job of the cluster already trains a run of this name.
    """
    for job in server.jobs():  # the oldest first; of two of the same moment, both sides see the same order
        if job.submission_id == own:
            return
        if run_of(job) == name and not has_ended(job):
            submitter = (job.metadata or {}).get("submitter")
            by = f" (submitted by {plain_text(submitter)})" if submitter else ""
            raise LiveRunError(
                f"job {job.submission_id}{by} already trains the run {name}: follow it with launch.py logs {name} "
                f"--follow, end it with launch.py stop {name}, or submit another run with name=NAME"
            )


# --- Keys


def found_keys(config: RunConfig, more: Sequence[str]) -> dict[str, str]:
    """Return the keys of W&B and Hugging Face that exist here and that the run can use, and those named in `more`.

    Raises:
        SubmissionRefusedError: if a variable in `more` is not set.
    """
    keys = {name: os.environ[name] for name in SENT_BY_DEFAULT if os.environ.get(name)}
    if config.tracking.wandb in ("disabled", "offline"):
        keys.pop("WANDB_API_KEY", None)
    elif "WANDB_API_KEY" not in keys and (known := _wandb_login()):
        keys["WANDB_API_KEY"] = known
    for name in more:
        if not os.environ.get(name):
            raise SubmissionRefusedError(
                f"--key {name}: the variable is not set in the environment of this command; export it first"
            )
        keys[name] = os.environ[name]
    return keys


def _wandb_login() -> str | None:
    """Return the key that `wandb login` has saved, or None."""
    import wandb

    host = urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).hostname
    try:
        known = netrc.netrc().authenticators(host or "")
    except (OSError, netrc.NetrcParseError):
        return None
    return known[2] if known else None


def send_keys(
    server: JobServer, job: str, keys: Mapping[str, str], timeout_s: float = DRIVER_TIMEOUT_S
) -> None:
    """Seal `keys` for the job and send them as soon as its driver requests them. Return at once if the job has ended.

    Raises:
        JobServerError: if the driver does not start within the timeout, or the server refuses the box.
    """
    deadline = time.monotonic() + timeout_s
    while (public := announced(job, server.log(job))) is None:
        if has_ended(server.details(job)):
            return
        if time.monotonic() > deadline:
            raise JobServerError(
                f"job {job} did not request its keys within {timeout_s:g} s, perhaps because no node has the "
                f"resources for its driver: see launch.py status {job}; the job continues without keys"
            )
        time.sleep(0.5)
    with explained(server.address):
        answer = server.client._do_request(
            "PUT", f"/api/packages/gcs/{package_name(job)}", data=seal(job, keys, public)
        )
        if answer.status_code != 200:
            server.client._raise_error(answer)


# --- From the options of the command line


def cluster_overrides(config: RunConfig, overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides for the job, with the paths of the run directory and a model's files made absolute.

    The working directory of the job is the package, which Ray deletes, so relative paths would be lost.
    """
    absolute = {"directory": str(config.directory.expanduser().absolute())}
    source = config.model.source
    if source != "starter" and not source.startswith("package:"):
        located = locate(config.model)
        if located.kind in ("directory", "gguf"):
            absolute["model.source"] = located.location
    kept = [override for override in overrides if override.partition("=")[0] not in absolute]
    return (*kept, *(f"{name}={path}" for name, path in absolute.items()))


def environment(pairs: Sequence[str]) -> dict[str, str]:
    """Parse variables of the form `NAME=VALUE`.

    Raises:
        SubmissionRefusedError: if a variable is malformed, or its name looks like that of a secret.
    """
    return _pairs("--env", pairs, refuse_secrets=True)


def labels(pairs: Sequence[str]) -> dict[str, str]:
    """Parse labels of the form `LABEL=VALUE`.

    Raises:
        SubmissionRefusedError: if a label is malformed.
    """
    return _pairs("--driver-label", pairs)


def resources(pairs: Sequence[str]) -> dict[str, float]:
    """Parse resources of the form `NAME=AMOUNT`.

    Raises:
        SubmissionRefusedError: if a resource is malformed.
    """
    try:
        return {
            name: read_number(NotNegative, amount)
            for name, amount in _pairs("--driver-resource", pairs).items()
        }
    except ValueError as error:
        raise SubmissionRefusedError(f"--driver-resource expects NAME=AMOUNT: {error}") from error


def _pairs(option: str, pairs: Sequence[str], refuse_secrets: bool = False) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise SubmissionRefusedError(f"{option} expects NAME=VALUE, got {pair!r}")
        if refuse_secrets and _SECRET_NAME.search(name):
            raise SubmissionRefusedError(
                f"{option} {name}: Ray shows a job's environment to every user who may list jobs; set {name} in this "
                f"command's own environment and give --key {name}, which sends it sealed"
            )
        found[name] = value
    return found
