"""Follow a run over all its jobs: where one is lost, submit the next, which resumes.

It lives where `launch.py submit --supervise` was called, outside the cluster. So it outlives the driver, the driver's
node and the head node; what ends with its own machine or terminal is only the watching.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ray.job_submission import JobDetails

from cluster.commands.jobs.following import follow
from cluster.commands.jobs.resubmission import Budgets, Ending, ending_of
from cluster.commands.jobs.sending_keys import send_keys
from cluster.commands.jobs.server import JobServer, NoSuchJobError, ServerAwayError
from cluster.commands.jobs.submission import Submission, submit

CLUSTER_AWAY_S = 1800.0
"""How long a cluster that is gone may take to come back."""
RETRY_S = 5.0


def supervise(
    server: JobServer,
    submission: Submission,
    job: str,
    budgets: Budgets,
    write: Callable[[str], None],
    say: Callable[[str], None],
    cluster_away_s: float = CLUSTER_AWAY_S,
) -> Ending:
    """Follow `job`, and the jobs that take its place, until the run ends or the budgets are spent.

    Raises:
        JobServerError: the cluster is away for too long, or will not take the next job.
    """
    number = 1
    while True:
        ending = ending_of(*_outcome(_followed(server, job, write, cluster_away_s)))
        left = budgets.after(ending)
        if left is None:
            return ending
        budgets = left
        number += 1
        submission = submission.again()
        job = _submitted(server, submission, number, cluster_away_s)
        say(
            f"the job before was {ending.value}; job {job} goes on from the last checkpoint (left: "
            f"{budgets.failures} failures, {budgets.preemptions} preemptions)"
        )
        if submission.keys:
            send_keys(server, job, submission.keys)


def _followed(server: JobServer, job: str, write: Callable[[str], None], away_s: float) -> JobDetails | None:
    """What became of a job; None if the cluster has forgotten it."""
    try:
        return follow(server, job, write, away_s)
    except NoSuchJobError:
        return None


def _outcome(details: JobDetails | None) -> tuple[str | None, int | None, str | None]:
    if details is None:
        return None, None, None
    return details.status.value, details.driver_exit_code, details.error_type


def _submitted(server: JobServer, submission: Submission, number: int, away_s: float) -> str:
    """The id of the next job. While nobody answers, it is tried again and again."""
    deadline = time.monotonic() + away_s
    while True:
        try:
            return submit(server, submission, number)
        except ServerAwayError:
            if time.monotonic() > deadline:
                raise
        time.sleep(RETRY_S)
