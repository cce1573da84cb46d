"""Online or offline? Asked of wandb itself, without a prompt and without waiting for an absent network.

Imported by the W&B sink's own thread only, because it imports wandb.
"""

from __future__ import annotations

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
    import wandb

    with exit_hooks_kept():
        wandb.setup(wandb.Settings(**settings))


def choose(wanted: Wanted) -> tuple[Mode, str]:
    """The mode to start in, and why, for a person. Call after `set_up`."""
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
    """Asks wandb's service process to end, and kills it when it has not ended after `timeout_s` seconds.

    wandb's own exit hook waits without a deadline, for a process that may have lost the request: with a server that
    cannot be reached, it closes its connection in the middle. Only where nothing is left to upload.
    """
    asking = threading.Thread(target=_ask, name="end wandb's service", daemon=True)
    asking.start()
    asking.join(timeout_s)
    if asking.is_alive():
        kill()
        asking.join(timeout_s)


def _ask() -> None:
    import wandb

    with suppress(ConnectionError):  # it was killed already: then it has ended
        wandb.teardown()


def kill() -> None:
    """Kills wandb's processes among our children: whoever waits for them then fails instead of waiting."""
    for child in psutil.Process().children():
        try:
            if child.name().startswith("wandb-core"):
                child.kill()
        except psutil.NoSuchProcess:
            continue


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
