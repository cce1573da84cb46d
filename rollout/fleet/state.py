"""The membership of the rollout fleet: a list of workers, each in one state. Pure: no Ray, no clock.

                                    ┌──── published ────┐
                                    ▼                   │
    add ─▶ STARTING ──started──▶ STALE ──pulled──▶ HEALTHY          leases prompts only here
              ▲                     │ ▲                 │
              │                 silent│heard            │silent
           RESTARTING               ▼ │                 │
              ▲                   SUSPECT ◀─────────────┘           leases none until it answers again
              │
            lost ─── from any of these; after too many failures in a row ──▶ DEAD

    drain ─▶ DRAINING (finishes its prompts, leases no new ones) ──drained or lost──▶ RETIRED
             from STARTING, RESTARTING and DEAD directly to RETIRED, because there is nothing to finish

A worker samples prompts only when it is HEALTHY, that is, when it serves the current weight version. New, replaced and
lagging workers all pass through STALE.

Without a learner no version is published. Then `serve_as_loaded` makes the weights that every process loads at its
start the current version, and `started` leads directly to HEALTHY.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from cluster.core.schema import MAX_ACTORS
from cluster.core.types import LOADED_VERSION


class WorkerState(StrEnum):
    """The state of a member of the fleet. The diagram above shows the transitions."""

    STARTING = "starting"
    STALE = "stale"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    RESTARTING = "restarting"
    DEAD = "dead"
    DRAINING = "draining"
    RETIRED = "retired"


_NOT_UP = frozenset({WorkerState.STARTING, WorkerState.RESTARTING})
_SERVING = frozenset({WorkerState.STALE, WorkerState.HEALTHY, WorkerState.SUSPECT})
_ALLOWED: dict[str, frozenset[WorkerState]] = {
    "started": _NOT_UP,
    "pulled": _SERVING,
    "silent": _SERVING,
    "heard": _SERVING,
    "served": _SERVING | {WorkerState.DRAINING},
    "lost": _NOT_UP | _SERVING | {WorkerState.DRAINING},
    "drain": _NOT_UP | _SERVING | {WorkerState.DEAD},
    "drained": frozenset({WorkerState.DRAINING}),
}
_DRAINED_FIRST = (
    WorkerState.STARTING,
    WorkerState.RESTARTING,
    WorkerState.SUSPECT,
    WorkerState.STALE,
    WorkerState.HEALTHY,
)
"""The order in which members are drained when the fleet shrinks: those with the least work to lose first."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of the fleet. Its process may be replaced; its name stays."""

    name: str
    state: WorkerState = WorkerState.STARTING
    version: int | None = None
    """The version of the weights that its process serves; None if it serves none."""
    incarnation: int = 0
    """The number of earlier processes of this member."""
    failures: int = 0
    """The number of processes lost in a row, since the last one that delivered a sample."""

    @property
    def process(self) -> str:
        """The name of its current process."""
        return f"{self.name}.{self.incarnation}"


@dataclass(frozen=True, slots=True)
class Resizing:
    """The members that a change of size adds and drains, by name."""

    added: tuple[str, ...]
    drained: tuple[str, ...]


def refuse_size(workers: object) -> None:
    """Refuse a number of workers that no fleet can have.

    Raises:
        ValueError: if it is not a positive integer up to `MAX_ACTORS`. The message is for the user, and does not quote
            the number, which may have any length.
    """
    if type(workers) is not int or not 1 <= workers <= MAX_ACTORS:
        raise ValueError(f"the number of rollout workers must be an integer from 1 to {MAX_ACTORS}")


class FleetState:
    """The members and the current weight version. Every change is one of the events below.

    An event that the state of a member does not allow raises ValueError and changes nothing.
    """

    def __init__(self, workers: int, max_consecutive_failures: int) -> None:
        self._members: dict[str, Member] = {}
        self._restarts_in_a_row = max_consecutive_failures
        self._serves_as_loaded = False
        self.current_version: int | None = None
        self.restarts = 0
        self.resize(workers)

    def __getitem__(self, name: str) -> Member:
        return self._members[name]

    @property
    def members(self) -> tuple[Member, ...]:
        """All members except retired ones."""
        return tuple(member for member in self._members.values() if member.state is not WorkerState.RETIRED)

    @property
    def size(self) -> int:
        """The number of members that serve or will serve: all that are not dead, draining or retired."""
        return self.count(_NOT_UP | _SERVING)

    @property
    def healthy(self) -> int:
        """The number of members that serve the current version."""
        return self.count({WorkerState.HEALTHY})

    @property
    def started_workers(self) -> int:
        """The number of members whose process is up and answers."""
        return self.count({WorkerState.STALE, WorkerState.HEALTHY})

    @property
    def healthy_processes(self) -> tuple[str, ...]:
        """The names of the processes that serve the current version."""
        return tuple(member.process for member in self.members if member.state is WorkerState.HEALTHY)

    def count(self, states: Iterable[WorkerState]) -> int:
        """Return the number of members in one of `states`."""
        wanted = frozenset(states)
        return sum(member.state in wanted for member in self._members.values())

    def resize(self, workers: int) -> Resizing:
        """Add or drain members until `size` is `workers`. New members get names that were not used before.

        Raises:
            ValueError: as in `refuse_size`. Nothing is changed.
        """
        refuse_size(workers)
        added = [f"rollout-{len(self._members) + index}" for index in range(workers - self.size)]
        candidates = [
            member for state in _DRAINED_FIRST for member in reversed(self.members) if member.state is state
        ]
        drained = [member.name for member in candidates[: max(0, self.size - workers)]]
        for name in added:
            self._members[name] = Member(name)
        for name in drained:
            self.drain(name)
        return Resizing(tuple(added), tuple(drained))

    def started(self, name: str) -> None:
        """The process of `name` is up. The weights that it loaded count only after `serve_as_loaded`."""
        version = LOADED_VERSION if self._serves_as_loaded else None
        self._change(name, "started", state=self._state_with(version), version=version)

    def serve_as_loaded(self) -> None:
        """Make the weights that processes load at their start the current version, `LOADED_VERSION`.

        Raises:
            ValueError: if there is a current version already.
        """
        if self.current_version is not None:
            raise ValueError(
                f"cannot serve weights as loaded: version {self.current_version} was already published"
            )
        self._serves_as_loaded = True
        self.current_version = LOADED_VERSION
        for member in self.members:
            if member.state in _SERVING:
                self._members[member.name] = replace(member, version=LOADED_VERSION)
            if member.state is WorkerState.STALE:
                self.heard(member.name)

    def published(self, version: int) -> None:
        """A newer version was published. Healthy members become stale.

        Raises:
            ValueError: if `version` is not larger than the current one.
        """
        if self.current_version is not None and version <= self.current_version:
            raise ValueError(
                f"version {version} was published after version {self.current_version}; versions must increase"
            )
        self.current_version = version
        for member in self.members:
            if member.state is WorkerState.HEALTHY:
                self._members[member.name] = replace(member, state=WorkerState.STALE)

    def pulled(self, name: str, version: int) -> None:
        """The worker serves `version` now. It becomes healthy only if that is still the current version."""
        self._change(name, "pulled", state=self._state_with(version), version=version)

    def silent(self, name: str) -> None:
        """The worker has sent no heartbeat for a while."""
        self._change(name, "silent", state=WorkerState.SUSPECT)

    def heard(self, name: str) -> None:
        """The worker answers."""
        self._change(name, "heard", state=self._state_with(self[name].version))

    def served(self, name: str) -> None:
        """The worker delivered a sample, so earlier failures of this member are forgotten."""
        self._change(name, "served", failures=0)

    def lost(self, name: str) -> WorkerState:
        """The process ended or is unusable. Return the new state: RESTARTING, DEAD after too many failures in a row, or
        RETIRED if the member was draining."""
        member = self[name]
        if member.state is WorkerState.DRAINING:
            self._change(name, "lost", state=WorkerState.RETIRED, version=None)
        elif member.failures >= self._restarts_in_a_row:
            self._change(name, "lost", state=WorkerState.DEAD, version=None)
        else:
            self._change(
                name,
                "lost",
                state=WorkerState.RESTARTING,
                version=None,
                incarnation=member.incarnation + 1,
                failures=member.failures + 1,
            )
            self.restarts += 1
        return self[name].state

    def drain(self, name: str) -> WorkerState:
        """The worker shall finish its prompts and end. Return DRAINING, or RETIRED if it has no prompts to finish."""
        up = self[name].state in _SERVING
        self._change(name, "drain", state=WorkerState.DRAINING if up else WorkerState.RETIRED)
        return self[name].state

    def drained(self, name: str) -> None:
        """The worker has finished its prompts, and its process has ended."""
        self._change(name, "drained", state=WorkerState.RETIRED, version=None)

    def _state_with(self, version: int | None) -> WorkerState:
        """Return the state of a worker that is up and serves `version`."""
        current = version is not None and version == self.current_version
        return WorkerState.HEALTHY if current else WorkerState.STALE

    def _change(self, name: str, event: str, **changes: object) -> None:
        member = self._members[name]
        if member.state not in _ALLOWED[event]:
            raise ValueError(f"worker {name} is {member.state}, where the event {event!r} is not allowed")
        self._members[name] = replace(member, **changes)  # type: ignore[arg-type]
