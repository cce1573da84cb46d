"""SIGTERM, with which a scheduler takes a machine back, ends a command as orderly as Ctrl-C. Ray-free."""

from __future__ import annotations

import signal
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM was received. The exception ends a command in the same way as Ctrl-C."""


def raise_on_sigterm() -> None:
    """Raise `Terminated` in the main thread on SIGTERM from now on, so that the command ends its actors."""

    def terminate(*_: object) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
