"""The job server of a Ray cluster: finding it, and saying in one line why it cannot be used."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from urllib.parse import urlsplit

import ray
from ray.job_submission import JobDetails, JobSubmissionClient

from cluster.runtime.auth import token_sources
from cluster.runtime.connect import probe

RAY_VERSION = version("ray")
_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""They would beat an address that was given on the command line."""


class JobServerError(RuntimeError):
    """The cluster's job server cannot be used, or will not do what it was asked for; says why in one line."""


class NoSuchJobError(JobServerError):
    """The cluster knows no such job."""


class ServerAwayError(JobServerError):
    """Nobody answers at the moment."""


class NotReadyError(ServerAwayError):
    """The cluster is starting, and does not take jobs yet."""


class JobServer:
    """The job server at an address: `http://HOST:8265`, `HOST:6379` as Ray's nodes join it, or `auto` for the cluster
    of this machine.

    Every call raises JobServerError: NoSuchJobError, ServerAwayError, or why else it cannot be done.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.client = _client(address)

    def details(self, job: str) -> JobDetails:
        """What Ray knows of a job."""
        with explained(self.address):
            return self.client.get_job_info(job)

    def jobs(self) -> list[JobDetails]:
        """Those that were submitted, the newest last."""
        with explained(self.address):
            known = self.client.list_jobs()
        submitted = [job for job in known if job.submission_id is not None]
        return sorted(submitted, key=lambda job: job.start_time or 0)

    def find(self, reference: str) -> JobDetails:
        """The job of that id, or the newest of the run of that name."""
        matching = [job for job in self.jobs() if reference in (job.submission_id, run_of(job))]
        if not matching:
            raise NoSuchJobError(
                f"the cluster at {self.address} knows no job or run called {reference}; see launch.py list"
            )
        return matching[-1]

    def log(self, job: str) -> str:
        """All of a job's log."""
        with explained(self.address):
            return self.client.get_job_logs(job)

    def stop(self, job: str) -> bool:
        """Tell a job to come to an end. False if it has ended."""
        with explained(self.address):
            return self.client.stop_job(job)


def run_of(job: JobDetails) -> str | None:
    """The name of the run that a job is, if it is one of ours."""
    return (job.metadata or {}).get("run")


def has_ended(job: JobDetails) -> bool:
    return job.status.is_terminal()


def _client(address: str) -> JobSubmissionClient:
    logging.getLogger("ray").setLevel(logging.ERROR)
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they say in more words what we say
    with _without(_VARIABLES), explained(address):
        if "://" not in address:
            probe(address)
        client = JobSubmissionClient(address)
    there = client._server_ray_version
    if there != RAY_VERSION:
        raise JobServerError(
            f"the cluster at {address} runs Ray {there}, and this project needs {RAY_VERSION}: install what "
            "requirements/ names on its nodes and start them anew, or name another cluster"
        )
    return client


@contextmanager
def _without(variables: tuple[str, ...]) -> Iterator[None]:
    hidden = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Failures of the block in one line, with what to do."""
    try:
        yield
    except ray.exceptions.AuthenticationError as error:
        token = "has no token" if "no authentication token" in str(error) else "has another token"
        raise JobServerError(
            f"the cluster at {address} asks for a token, and this command {token}; RAY_AUTH_MODE=token "
            f"launch.py … sends it the one of {token_sources()}"
        ) from error
    except (OSError, ray.exceptions.RpcError) as error:  # those of `requests` are OSErrors
        raise ServerAwayError(_unreachable(address)) from error
    except RuntimeError as error:
        if "does not exist" in str(error):
            raise NoSuchJobError(f"the cluster at {address} knows no such job; see launch.py list") from error
        if "No available agent" in str(error):
            raise NotReadyError(
                f"the cluster at {address} takes no jobs yet. If it was not started just now, its head's agent found "
                "its port taken, by another Ray on that machine: ray start --head --dashboard-agent-listen-port=0"
            ) from error
        raise JobServerError(
            f"the cluster at {address} refused: {' '.join(str(error).split())[:500]}"
        ) from error


def _unreachable(address: str) -> str:
    if "://" in address:
        port = urlsplit(address).port or 8265
        return (
            f"there is no Ray job server at {address}; is the head node up? It listens to its own machine alone: make "
            f"a tunnel (ssh -L {port}:localhost:{port} HEAD), or start it with a token and --dashboard-host=0.0.0.0"
        )
    return (
        f"there is no Ray job server to be found through {address}; is the cluster up? From outside, name its "
        "job server: --address http://HOST:8265"
    )
