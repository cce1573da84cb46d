"""Follow a run over all its jobs. If a job is lost, submit the next one, which resumes the run.

This code runs where `launch.py submit` was called, outside the cluster. So it outlives the driver, the driver's node
and the head node. If its own machine or terminal ends, only the watching ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import aiohttp
from ray.job_submission import JobDetails

from cluster.commands.exits import EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_USAGE
from cluster.commands.jobs.server import JobServer, NoSuchJobError, ServerAwayError, has_ended
from cluster.commands.jobs.submission import Submission, new_id, send_keys, submit
from cluster.core.text import plain_text

AWAY_S = 60.0
"""The time for which the job server may be unreachable before following gives up. The job may still continue."""
CLUSTER_AWAY_S = 1800.0
"""The time for which the cluster may be unreachable before supervision gives up."""
RETRY_S = 5.0
_ENDING_S = 30.0
"""The time after the end of a log within which Ray updates the status of its job."""
_TERMINATED = (-15, 128 + 15, EXIT_TERMINATED)
_LOST_NODE = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE")
"""Ray's error types for a job whose supervising actor was lost, and the driver with it."""


class Ending(Enum):
    """The way in which a job ended."""

    DONE = "done"
    STOPPED = "stopped by a user"
    REFUSED = "refused; fix the configuration or the resources of the cluster first"
    FAILED = "failed"
    PREEMPTED = "lost with its node, or terminated by SIGTERM"


def ending_of(status: str | None, exit_code: int | None = None, error_type: str | None = None) -> Ending:
    """Classify a job that has ended, from Ray's description of it.

    Args:
        status: Ray's status, or None for a job that the cluster has forgotten, which happens when its head node is
            lost.
    """
    if status is None or error_type in _LOST_NODE or exit_code in _TERMINATED:
        return Ending.PREEMPTED
    if status == "SUCCEEDED":
        return Ending.DONE
    if status == "STOPPED" or exit_code == EXIT_INTERRUPTED:
        return Ending.STOPPED
    if exit_code == EXIT_USAGE:
        return Ending.REFUSED
    return Ending.FAILED


@dataclass(frozen=True, slots=True)
class Budgets:
    """The numbers of failures and preemptions after which the run is submitted again.

    They are counted separately: a cluster of spot machines preempts often, which says nothing about the run.
    """

    failures: int
    preemptions: int

    def after(self, ending: Ending) -> Budgets | None:
        """Return the budgets that are left after another try, or None if the run must not be submitted again."""
        if ending is Ending.FAILED and self.failures > 0:
            return replace(self, failures=self.failures - 1)
        if ending is Ending.PREEMPTED and self.preemptions > 0:
            return replace(self, preemptions=self.preemptions - 1)
        return None


def supervise(
    server: JobServer,
    submission: Submission,
    job: str,
    budgets: Budgets,
    write: Callable[[str], None],
    say: Callable[[str], None],
    cluster_away_s: float = CLUSTER_AWAY_S,
) -> Ending:
    """Follow `job` and its successors until the run ends or the budgets are spent.

    Args:
        write: Receives the logs of the jobs.
        say: Receives messages about the jobs.

    Raises:
        JobServerError: if the cluster is unreachable for too long, or refuses the next job, or if another process has
            submitted the run in the meantime.
    """
    number = 1
    while True:
        ending = _ending(server, job, write, cluster_away_s)
        left = budgets.after(ending)
        if left is None:
            return ending
        budgets = left
        number += 1
        submission = submission.again()
        job = _submitted(server, submission, number, cluster_away_s)
        say(
            f"the previous job ended ({ending.value}); job {job} resumes from the last checkpoint (left: "
            f"{budgets.failures} failures, {budgets.preemptions} preemptions)"
        )
        if submission.keys:
            send_keys(server, job, submission.keys)


def _ending(server: JobServer, job: str, write: Callable[[str], None], away_s: float) -> Ending:
    """Follow a job to its end and classify it. A job that the cluster has forgotten counts as preempted."""
    try:
        details = follow(server, job, write, away_s)
    except NoSuchJobError:
        return ending_of(None)
    return ending_of(details.status.value, details.driver_exit_code, details.error_type)


def _submitted(server: JobServer, submission: Submission, number: int, away_s: float) -> str:
    """Submit the next job and return its id, with retries while the server is unreachable. All of them are of the same
    job, so that one whose answer was lost is not repeated."""
    job = new_id(submission, number)
    deadline = time.monotonic() + away_s
    while True:
        try:
            return submit(server, submission, job)
        except ServerAwayError:
            if time.monotonic() > deadline:
                raise
        time.sleep(RETRY_S)


def follow(server: JobServer, job: str, write: Callable[[str], None], away_s: float = AWAY_S) -> JobDetails:
    """Write the log of a job as it grows, and return the job's details when it has ended.

    A lost connection is opened again, and no part of the log is written twice.

    Raises:
        JobServerError: if the server is unreachable for too long (ServerAwayError), or does not know the job.
    """
    written = 0
    last_answer = time.monotonic()
    log_ended: float | None = None
    while True:
        try:
            details = server.details(job)
            last_answer = time.monotonic()
            if has_ended(details):
                # The complete log contains the part that the connection did not deliver.
                write(plain_text(server.log(job)[written:]))
                return details
            if log_ended is None or time.monotonic() - log_ended > _ENDING_S:
                written = asyncio.run(_tail(server, job, write, written))
                log_ended = time.monotonic()
        except ServerAwayError:
            if time.monotonic() - last_answer > away_s:
                raise
        time.sleep(0.5)


async def _tail(server: JobServer, job: str, write: Callable[[str], None], written: int) -> int:
    """Write the log until the connection ends. Return the number of characters of the log written so far."""
    skip = written
    try:
        async for text in server.client.tail_job_logs(job):
            fresh = text[skip:]
            skip = max(0, skip - len(text))
            if fresh:
                write(plain_text(fresh))
                written += len(fresh)
    except (aiohttp.ClientError, RuntimeError, OSError):
        pass  # the caller finds out which of the server and the connection is gone
    return written
