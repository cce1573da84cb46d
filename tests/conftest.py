"""For all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Ctrl-C can be tested wherever pytest was started: background jobs of a shell, and all that they start, would
    ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
