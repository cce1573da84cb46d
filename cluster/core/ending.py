"""The end of a command that was asked twice to end: shorter waits, and the last acts before it is ended by force.

`cluster/runtime/signals.py` calls `hurry` at the second signal. Whatever waits during the clean-up waits for at most
`HURRIED_S` from then on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

HURRIED_S = 5.0
"""The longest wait for one thing, once the command is hurried."""
_POLL_S = 0.1
_hurried = threading.Event()
_last_acts: list[Callable[[], None]] = []


def hurry() -> None:
    """Shorten every wait of the clean-up from now on."""
    _hurried.set()


def take_time() -> None:
    """Let the clean-up wait as long as it usually does. It is called when a command begins."""
    _hurried.clear()


def is_hurried() -> bool:
    """Return whether the waits of the clean-up are short."""
    return _hurried.is_set()


def wait_patiently(ended: Callable[[], bool], timeout_s: float, hurried_s: float = HURRIED_S) -> bool:
    """Wait until `ended` returns True, for at most `timeout_s`, or `hurried_s` after the command was hurried. Return
    whether it did."""
    deadline = time.monotonic() + timeout_s
    hurried = False
    while not ended():
        if is_hurried() and not hurried:
            hurried = True
            deadline = min(deadline, time.monotonic() + hurried_s)
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def at_forced_end(act: Callable[[], None]) -> None:
    """Call `act` if the process is ended by force. It must not wait."""
    _last_acts.append(act)


def not_at_forced_end(act: Callable[[], None]) -> None:
    """Take `at_forced_end(act)` back."""
    _last_acts.remove(act)


def do_last_acts() -> None:
    """Do what `at_forced_end` has collected, the newest first, even if one of these acts fails."""
    for act in reversed(_last_acts):
        with suppress(Exception):
            act()
