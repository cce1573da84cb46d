"""Set up the environment of all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Restore the default handler of SIGINT, so that tests of Ctrl-C work wherever pytest runs. The background jobs of
    a shell, and the processes that they start, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
