"""Ending wandb's service process, which does not always end when it is asked to."""

from __future__ import annotations

import threading
from contextlib import suppress

import psutil


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
