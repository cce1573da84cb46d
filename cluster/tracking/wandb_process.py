"""The service process of wandb: starting it online or offline, without a prompt and with deadlines, and ending it.

Functions import wandb where they need it, because the import takes seconds.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import psutil

REACH_TIMEOUT_S = 5.0
Wanted = Literal["auto", "online", "offline"]
Mode = Literal["online", "offline", "off"]


def set_up(wanted: Wanted, directory: Path, init_timeout_s: float, finish_timeout_s: float) -> None:
    """Start wandb's service process, silent and with deadlines. WANDB_* environment variables keep their effect.

    Data that waits for its upload is kept in `directory`, so that an offline run can be moved and synced elsewhere.
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
    if wanted != "auto":  # an explicit setting overrides WANDB_MODE
        settings["mode"] = wanted
    import wandb

    with exit_hooks_kept():
        wandb.setup(wandb.Settings(**settings))


def choose(wanted: Wanted) -> tuple[Mode, str]:
    """Return the mode to start in, and the reason for the user. Call it after `set_up`."""
    if wanted == "offline":
        return "offline", "as configured"
    import wandb

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


def end(timeout_s: float) -> None:
    """Ask wandb's service process to end, and kill it if it still runs after `timeout_s` seconds.

    wandb's own exit hook waits without a deadline for a process that may have lost the request: if the server cannot be
    reached, the process closes its connection early. Call it only when nothing is left to upload.
    """
    thread = threading.Thread(target=_tear_down, name="end wandb's service", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        kill()
        thread.join(timeout_s)


def _tear_down() -> None:
    import wandb

    with suppress(ConnectionError):  # the process was killed already
        wandb.teardown()


def kill() -> None:
    """Kill wandb's processes among our children, so that threads that wait for them fail instead of waiting."""
    for child in psutil.Process().children():
        try:
            if child.name().startswith("wandb-core"):
                child.kill()
        except psutil.NoSuchProcess:
            continue


def unreachable(url: str) -> str | None:
    """Return why the server cannot be reached; None if it answers. An error response counts as an answer.

    wandb itself would retry a refused connection until its init timeout expires.
    """
    try:
        with urllib.request.urlopen(url, timeout=REACH_TIMEOUT_S):
            return None
    except urllib.error.HTTPError:
        return None
    except urllib.error.URLError as error:
        # wandb may have certificates of its own, so it shall try.
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    # A time-out while reading is not wrapped in URLError; the others are malformed addresses, such as HTTPS_PROXY's.
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(error)


@contextmanager
def exit_hooks_kept() -> Iterator[None]:
    """Restore both hooks after wandb has replaced them: its hooks would print each traceback a second time."""
    kept = sys.excepthook, sys.exit
    try:
        yield
    finally:
        sys.excepthook, sys.exit = kept
