"""The submitting side of keys.py: find the keys, wait until the job says for whom to seal them, and send the box."""

from __future__ import annotations

import netrc
import os
import time
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from cluster.commands.jobs.server import JobServer, JobServerError, explained, has_ended
from cluster.commands.jobs.submission import SubmissionRefusedError
from cluster.core.config import RunConfig
from cluster.runtime.job import SENT_BY_DEFAULT, announced, package_name, seal

DRIVER_TIMEOUT_S = 600.0
"""How long the driver of a job may take to start. The cluster may have to bring a node for it."""


def found_keys(config: RunConfig, more: Sequence[str]) -> dict[str, str]:
    """Of W&B and Hugging Face, as far as there are any here and the run can use them, and those of `more`.

    Raises:
        SubmissionRefusedError: one of `more` is not set.
    """
    keys = {name: os.environ[name] for name in SENT_BY_DEFAULT if os.environ.get(name)}
    if config.tracking.wandb in ("disabled", "offline"):
        keys.pop("WANDB_API_KEY", None)
    elif "WANDB_API_KEY" not in keys and (known := _wandb_login()):
        keys["WANDB_API_KEY"] = known
    for name in more:
        if not os.environ.get(name):
            raise SubmissionRefusedError(f"--key {name}: it is not set in the environment of this command")
        keys[name] = os.environ[name]
    return keys


def send_keys(
    server: JobServer, job: str, keys: Mapping[str, str], timeout_s: float = DRIVER_TIMEOUT_S
) -> None:
    """Seal `keys` for the job and send them, as soon as its driver asks for them. Returns at once if it ends before.

    Raises:
        JobServerError: the driver did not start within the deadline, or the box was not taken.
    """
    deadline = time.monotonic() + timeout_s
    while (public := announced(job, server.log(job))) is None:
        if has_ended(server.details(job)):
            return
        if time.monotonic() > deadline:
            raise JobServerError(
                f"job {job} did not ask for its keys within {timeout_s:g} s: is there room for its driver? "
                f"See launch.py status {job}; it goes on without them"
            )
        time.sleep(0.5)
    with explained(server.address):
        answer = server.client._do_request(
            "PUT", f"/api/packages/gcs/{package_name(job)}", data=seal(job, keys, public)
        )
        if answer.status_code != 200:
            server.client._raise_error(answer)


def _wandb_login() -> str | None:
    """The key that `wandb login` has written down."""
    import wandb

    host = urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).hostname
    try:
        known = netrc.netrc().authenticators(host or "")
    except (OSError, netrc.NetrcParseError):
        return None
    return known[2] if known else None
