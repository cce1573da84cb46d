"""What a process knows of the job that it is the driver of. Ray-free until keys are taken."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray's job server, whose name for it this is."""


def job_of_this_process() -> str | None:
    """Its id; None if this is no job."""
    return _job_config().get("metadata", {}).get("job_submission_id")


def package_travels() -> bool:
    """Whether this is a job whose working directory Ray lays out on every node."""
    return "working_dir" in _job_config().get("runtime_env", {})


def _job_config() -> dict[str, Any]:
    return json.loads(os.environ.get(_JOB_CONFIG, "{}"))


def take_keys(say: Callable[[str], None]) -> None:
    """If this is a job that keys are sent to: wait for them. They are in the environment of this process then, and of
    none that Ray starts."""
    from cluster.runtime import job_keys as keys

    job = job_of_this_process()
    if job is None or keys.KEYS_VARIABLE not in os.environ:
        return
    from ray.experimental.internal_kv import GcsClient

    store = GcsClient(address=os.environ["RAY_ADDRESS"])
    keys.receive(job, lambda: _take(store, f"gcs://{keys.package_name(job)}".encode()), say)


def _take(store: Any, name: bytes) -> bytes | None:
    box = store.internal_kv_get(name, None, timeout=10)
    if box is not None:
        store.internal_kv_del(name, False, None, timeout=10)
    return box
