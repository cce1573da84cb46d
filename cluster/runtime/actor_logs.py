"""Prepare each Ray worker process: its output goes to a file of the run directory, and secrets leave its environment.

This module stays light: every Ray worker process imports it first.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from cluster.core.files import open_to_append
from cluster.core.secrets import hide_secrets

LOG_FILE_VARIABLE = "HPO_TRAINER_LOG_FILE"
SETUP_HOOK = "cluster.runtime.actor_logs.prepare_process"


def prepare_process() -> None:
    """Redirect the output, and hide the secrets of the node's or the user's environment. Ray calls this hook in every
    worker process before anything else."""
    hide_secrets()
    redirect_output()


def redirect_output() -> None:
    """Redirect stdout and stderr of this process and its children to the file named by the environment.

    Processes without the variable keep Ray's own log files.
    """
    path = os.environ.get(LOG_FILE_VARIABLE)
    if path is None:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open_to_append(Path(path)) as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
