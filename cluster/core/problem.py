"""A mistake in a configuration, or a resource that is missing: one line that says where, what and how to fix it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem that a user can fix."""

    where: str
    """The setting, file or environment at fault, such as `rollout.workers`."""
    what: str
    """The problem itself."""
    fix: str = ""
    """The advice that solves it; empty if `what` says it already."""

    def __str__(self) -> str:
        advice = f"; {self.fix}" if self.fix else ""
        return " ".join(f"{self.where}: {self.what}{advice}".split())  # one line, whatever the parts quote
