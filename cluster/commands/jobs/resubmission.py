"""Whether a job that has ended is to be submitted again. Pure: a table of endings, and two budgets. Ray-free."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from cluster.commands.exits import EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_USAGE

_TERMINATED = (-15, 128 + 15, EXIT_TERMINATED)
_LOST_NODE = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE")
"""Of Ray's job errors: who watched over the driver is gone, and the driver with it."""


class Ending(Enum):
    """How a job came to its end."""

    DONE = "done"
    STOPPED = "stopped by somebody"
    REFUSED = "refused: the configuration, or what the cluster has, must change first"
    FAILED = "failed"
    PREEMPTED = "lost with its node, or told to go"


def ending_of(status: str | None, exit_code: int | None = None, error_type: str | None = None) -> Ending:
    """From what Ray says of a job that has ended; a status of None is a job that the cluster has forgotten, as it does
    when its head node is lost."""
    if status is None or error_type in _LOST_NODE or exit_code in _TERMINATED:
        return Ending.PREEMPTED
    if status == "SUCCEEDED":
        return Ending.DONE
    if status == "STOPPED" or exit_code == EXIT_INTERRUPTED:
        return Ending.STOPPED
    if exit_code == EXIT_USAGE:
        return Ending.REFUSED
    return Ending.FAILED


@dataclass(frozen=True, slots=True)
class Budgets:
    """How many failures and how many preemptions may still be answered with another try. They are counted apart: a
    cluster of spot machines preempts often, which says nothing about the run."""

    failures: int
    preemptions: int

    def after(self, ending: Ending) -> Budgets | None:
        """What is left when another try has been started, or None if there is to be none."""
        if ending is Ending.FAILED and self.failures > 0:
            return replace(self, failures=self.failures - 1)
        if ending is Ending.PREEMPTED and self.preemptions > 0:
            return replace(self, preemptions=self.preemptions - 1)
        return None
