"""A job's log, as it grows, to the end of the job. A connection that is lost is made anew, and nothing said twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import aiohttp
from ray.job_submission import JobDetails

from cluster.commands.jobs.server import JobServer, ServerAwayError, has_ended
from cluster.core.text import plain_text

AWAY_S = 60.0
"""How long the job server may be away before following gives up. The job may go on all the same."""
_ENDING_S = 30.0
"""The status of a job follows the end of its log."""


def follow(server: JobServer, job: str, write: Callable[[str], None], away_s: float = AWAY_S) -> JobDetails:
    """Write the log of a job until it ends, and return what became of it.

    Raises:
        JobServerError: the server is away for too long (ServerAwayError), or does not know the job (any more).
    """
    written = 0
    last_answer = time.monotonic()
    log_ended: float | None = None
    while True:
        try:
            details = server.details(job)
            last_answer = time.monotonic()
            if has_ended(details):
                # What the connection has not brought: a log is read once more as a whole.
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
    """Until the connection ends. Returns how many characters of the log are written then."""
    skip = written
    try:
        async for text in server.client.tail_job_logs(job):
            fresh = text[skip:]
            skip = max(0, skip - len(text))
            if fresh:
                write(plain_text(fresh))
                written += len(fresh)
    except (aiohttp.ClientError, RuntimeError, OSError):
        pass  # whether it is the server or the connection that is gone, the caller finds out
    return written
