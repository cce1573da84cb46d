"""Each actor's output goes to a file of its own in the run directory; the console belongs to the run."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

LOG_FILE_VARIABLE = "HPO_TRAINER_LOG_FILE"
SETUP_HOOK = "cluster.runtime.actor_logs.redirect_output"


def redirect_output() -> None:
    """Runs in every Ray worker process before anything else: point stdout and stderr, and those of child
    processes, at the file that the environment names. Processes without one keep Ray's own log files.
    """
    path = os.environ.get(LOG_FILE_VARIABLE)
    if path is None:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
