"""Online or offline? Asked of wandb itself, without a prompt and without waiting for an absent network.

Imported by the W&B sink's own thread only, because it imports wandb.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import wandb

REACH_TIMEOUT_S = 5.0
Wanted = Literal["auto", "online", "offline"]
Mode = Literal["online", "offline", "off"]


def set_up(wanted: Wanted, directory: Path, init_timeout_s: float, finish_timeout_s: float) -> None:
    """Starts wandb's service process, silent and with deadlines. WANDB_* of the environment still count.

    What waits for its upload is kept in `directory`, so that an offline run can be moved and synced elsewhere.
    """
    os.environ.setdefault("WANDB_DATA_DIR", str(directory))
    # wandb's telemetry about itself waits up to 30 s at exit for a server that does not answer.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    settings = {
        "console": "off",  # or wandb would capture stdout and stderr and write to them
        "silent": True,
        "quiet": True,
        "init_timeout": init_timeout_s,
        "finish_timeout": finish_timeout_s,
    }
    if wanted != "auto":  # what the configuration says explicitly beats WANDB_MODE
        settings["mode"] = wanted
    with exit_hooks_kept():
        wandb.setup(wandb.Settings(**settings))


def choose(wanted: Wanted) -> tuple[Mode, str]:
    """The mode to start in, and why, for a person. Call after `set_up`."""
    if wanted == "offline":
        return "offline", "as configured"
    settings = wandb.setup().settings
    if settings.mode == "disabled":
        return "off", "WANDB_MODE=disabled"
    if settings.mode in ("offline", "dryrun"):
        return "offline", "WANDB_MODE=offline"
    try:
        configured = wandb.login(prompt=False, verify=False)  # looks at the environment, settings and netrc
    except wandb.errors.AuthenticationError as error:
        return "offline", f"the W&B API key is malformed: {error}"
    if not configured:
        return "offline", "no W&B API key is configured (`wandb login`)"
    if trouble := unreachable(settings.base_url):
        return "offline", f"{settings.base_url} cannot be reached ({trouble})"
    return "online", "a W&B API key is configured"


def unreachable(url: str) -> str | None:
    """Why the server cannot be reached, or None. Any answer counts, also an error: it proves a server.

    wandb itself would retry a refused connection until its whole init timeout is spent.
    """
    try:
        with urllib.request.urlopen(url, timeout=REACH_TIMEOUT_S):
            return None
    except urllib.error.HTTPError:
        return None
    except urllib.error.URLError as error:
        # wandb may have its own certificates: let it try.
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except OSError as error:  # a time-out while reading is not wrapped in URLError
        return str(error)


@contextmanager
def exit_hooks_kept() -> Iterator[None]:
    """Takes back both hooks from wandb, which would print each traceback a second time."""
    kept = sys.excepthook, sys.exit
    try:
        yield
    finally:
        sys.excepthook, sys.exit = kept
