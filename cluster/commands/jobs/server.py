"""Client of the job server of a Ray cluster. Every failure is one line with the reason and the remedy."""

from __future__ import annotations

import http.client
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from urllib.parse import urlsplit

import ray
from ray.job_submission import JobDetails, JobSubmissionClient

from cluster.core.addresses import parse_address, shown_text, shown_url
from cluster.core.errors import RefusedError
from cluster.runtime.auth import token_sources
from cluster.runtime.connect import probe

RAY_VERSION = version("ray")
_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray's variables, which would take precedence over an address from the command line."""


class JobServerError(RuntimeError):
    """The job server cannot be used, or refuses a request. The message is one line with the reason."""


class NoSuchJobError(JobServerError):
    """The cluster knows no such job."""


class ServerAwayError(JobServerError):
    """The job server does not answer at the moment."""


class NotReadyError(ServerAwayError):
    """The cluster is starting and does not accept jobs yet."""


class JobServer:
    """The job server of a cluster.

    Every method raises JobServerError or one of its subclasses, such as NoSuchJobError and ServerAwayError.
    """

    def __init__(self, address: str) -> None:
        """Connect to the server at `http://HOST:8265`, at `HOST:6379` (the address for Ray's nodes), or at `auto`
        (the cluster of this machine)."""
        parse_address(address, "--address")
        self.address = shown_url(address) if "://" in address else address
        """The address for messages: without a password."""
        self.client = _client(address)

    def details(self, job: str) -> JobDetails:
        """Return Ray's description of a job."""
        with explained(self.address):
            return self.client.get_job_info(job)

    def jobs(self) -> list[JobDetails]:
        """Return all submitted jobs, the newest last."""
        with explained(self.address):
            known = self.client.list_jobs()
        submitted = [job for job in known if job.submission_id is not None]
        return sorted(submitted, key=lambda job: (job.start_time or 0, job.submission_id))

    def find(self, reference: str) -> JobDetails:
        """Return the job with that id, or the newest job of the run with that name."""
        matching = [job for job in self.jobs() if reference in (job.submission_id, run_of(job))]
        if not matching:
            raise NoSuchJobError(
                f"the cluster at {self.address} has no job or run named {reference}; launch.py list shows all"
            )
        return matching[-1]

    def log(self, job: str) -> str:
        """Return the complete log of a job."""
        with explained(self.address):
            log: str = self.client.get_job_logs(job)
        return log

    def stop(self, job: str) -> bool:
        """Ask a job to stop. Return False if it has already ended."""
        with explained(self.address):
            running: bool = self.client.stop_job(job)
        return running


def run_of(job: JobDetails) -> str | None:
    """Return the name of the run that a job trains, or None for a job of another program."""
    return (job.metadata or {}).get("run")


def has_ended(job: JobDetails) -> bool:
    """Return True if the job has finished, failed or been stopped."""
    ended: bool = job.status.is_terminal()
    return ended


def _client(address: str) -> JobSubmissionClient:
    logging.getLogger("ray").setLevel(logging.ERROR)
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)  # their warnings repeat our messages
    with _without(_VARIABLES), explained(shown_url(address) if "://" in address else address):
        if "://" not in address:
            probe(address)
        client = JobSubmissionClient(address)
    theirs = client._server_ray_version
    if theirs != RAY_VERSION:
        raise JobServerError(
            f"the cluster at {shown_text(address)} runs Ray {theirs}, and this project needs {RAY_VERSION}: install "
            "the versions of requirements/ on its nodes and restart them, or name another cluster"
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
    """Translate the failures of the block into JobServerError, with one line of reason and remedy."""
    try:
        yield
    except ray.exceptions.AuthenticationError as error:
        token = "has no token" if "no authentication token" in str(error) else "has a different token"
        raise JobServerError(
            f"the cluster at {address} requires a token, and this command {token}; run RAY_AUTH_MODE=token "
            f"launch.py …, which sends the token from {token_sources()}"
        ) from error
    except (OSError, ray.exceptions.RpcError) as error:  # the errors of `requests` are OSErrors
        raise ServerAwayError(_unreachable(address)) from error
    except RuntimeError as error:
        if "does not exist" in str(error):
            raise NoSuchJobError(
                f"the cluster at {address} has no such job; launch.py list shows all"
            ) from error
        if "No available agent" in str(error):
            raise NotReadyError(
                f"the cluster at {address} does not accept jobs yet. If it was not started just now, the port of its "
                "head's agent is in use by another Ray on that machine: ray start --head "
                "--dashboard-agent-listen-port=0"
            ) from error
        raise JobServerError(
            f"the cluster at {address} refused the request: {shown_text(' '.join(str(error).split())[:500])}"
        ) from error
    except RefusedError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, http.client.HTTPException) as error:
        # The reply of another server, or a proxy (HTTP_PROXY) that does not exist.
        raise JobServerError(
            f"no Ray job server answers at {address} ({type(error).__name__}: "
            f"{shown_text(' '.join(str(error).split())[:200])}); check the address, and HTTP_PROXY if it is set"
        ) from error


def _unreachable(address: str) -> str:
    if "://" in address:
        port = urlsplit(address).port or 8265
        return (
            f"no Ray job server answers at {address}; check that the head node is up. By default it listens only on "
            f"its own machine: open a tunnel (ssh -L {port}:localhost:{port} HEAD), or start it with a token and "
            "--dashboard-host=0.0.0.0"
        )
    return (
        f"no Ray job server was found through {address}; check that the cluster is up. From outside the cluster, give "
        "the address of its job server: --address http://HOST:8265"
    )
