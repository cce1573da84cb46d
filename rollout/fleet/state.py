"""Membership of the rollout fleet: a list of workers, each in one state. Pure: no Ray, no clock.

                                    ┌──── published ────┐
                                    ▼                   │
    add ─▶ STARTING ──started──▶ STALE ──pulled──▶ HEALTHY          takes prompts only here
              ▲                     │ ▲                 │
              │                 silent│heard            │silent
           RESTARTING               ▼ │                 │
              ▲                   SUSPECT ◀─────────────┘           takes none until it is heard of again
              │
            lost ─── from any of these; after too many failures in a row ──▶ DEAD

    drain ─▶ DRAINING (finishes what it holds, takes nothing new) ──drained or lost──▶ RETIRED
             straight to RETIRED from STARTING, RESTARTING and DEAD, where there is nothing to finish

A worker serves prompts only when HEALTHY, that is, when it has pulled the current weight version: a new one, a
replaced one and one that lags behind all pass through STALE.

Without a learner nothing is published. Then `serve_as_loaded` makes the weights that every process loads when it
starts the current version, and `started` leads straight to HEALTHY.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from cluster.core.types import LOADED_VERSION


class WorkerState(StrEnum):
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
_GIVEN_UP_FIRST = (
    WorkerState.STARTING,
    WorkerState.RESTARTING,
    WorkerState.SUSPECT,
    WorkerState.STALE,
    WorkerState.HEALTHY,
)
"""When the fleet shrinks: those whose loss costs least."""


@dataclass(frozen=True, slots=True)
class Member:
    """One place in the fleet."""

    name: str
    state: WorkerState = WorkerState.STARTING
    version: int | None = None
    """Of the weights that its process serves."""
    incarnation: int = 0
    """Counts the processes that have held this place, from 0."""
    failures: int = 0
    """In a row: processes that were lost since the last one that brought anything."""

    @property
    def process(self) -> str:
        """The name of its present process."""
        return f"{self.name}.{self.incarnation}"


@dataclass(frozen=True, slots=True)
class Resizing:
    """What a new size means, by names."""

    added: tuple[str, ...]
    drained: tuple[str, ...]


class FleetState:
    """The members and the current weight version. Every change goes through one of its events.

    An event that a member's state does not allow raises ValueError and changes nothing.
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
        """All but those that have retired."""
        return tuple(member for member in self._members.values() if member.state is not WorkerState.RETIRED)

    @property
    def size(self) -> int:
        """Members that serve or are to serve: neither dead nor on their way out."""
        return self.count(_NOT_UP | _SERVING)

    @property
    def healthy(self) -> int:
        return self.count({WorkerState.HEALTHY})

    @property
    def started_workers(self) -> int:
        """Members whose process is up and answers."""
        return self.count({WorkerState.STALE, WorkerState.HEALTHY})

    @property
    def healthy_processes(self) -> tuple[str, ...]:
        """The names of those that serve the current version."""
        return tuple(member.process for member in self.members if member.state is WorkerState.HEALTHY)

    def count(self, states: Iterable[WorkerState]) -> int:
        wanted = frozenset(states)
        return sum(member.state in wanted for member in self._members.values())

    def resize(self, workers: int) -> Resizing:
        """Add or drain members until `size` is `workers`. Who is added gets a name that nobody had before.

        Raises:
            ValueError: `workers` is not positive.
        """
        if workers < 1:
            raise ValueError(f"a fleet of {workers} workers samples nothing")
        added = [f"rollout-{len(self._members) + index}" for index in range(workers - self.size)]
        candidates = [
            member for state in _GIVEN_UP_FIRST for member in reversed(self.members) if member.state is state
        ]
        drained = [member.name for member in candidates[: max(0, self.size - workers)]]
        for name in added:
            self._members[name] = Member(name)
        for name in drained:
            self.drain(name)
        return Resizing(tuple(added), tuple(drained))

    def started(self, name: str) -> None:
        """The process is up. The weights that it loaded count only if they are served as loaded."""
        version = LOADED_VERSION if self._serves_as_loaded else None
        self._change(name, "started", state=self._state_with(version), version=version)

    def serve_as_loaded(self) -> None:
        """What processes load when they start is the current version, `LOADED_VERSION`.

        Raises:
            ValueError: there is a current version already.
        """
        if self.current_version is not None:
            raise ValueError(f"version {self.current_version} is served: it is too late to serve as loaded")
        self._serves_as_loaded = True
        self.current_version = LOADED_VERSION
        for member in self.members:
            if member.state in _SERVING:
                self._members[member.name] = replace(member, version=LOADED_VERSION)
            if member.state is WorkerState.STALE:
                self.heard(member.name)

    def published(self, version: int) -> None:
        """A newer version is out: whoever serves an older one is stale.

        Raises:
            ValueError: the version does not rise.
        """
        if self.current_version is not None and version <= self.current_version:
            raise ValueError(f"version {version} was published after version {self.current_version}")
        self.current_version = version
        for member in self.members:
            if member.state is WorkerState.HEALTHY:
                self._members[member.name] = replace(member, state=WorkerState.STALE)

    def pulled(self, name: str, version: int) -> None:
        """The worker serves `version` now. It is healthy only if that is still the current one."""
        self._change(name, "pulled", state=self._state_with(version), version=version)

    def silent(self, name: str) -> None:
        """Nothing was heard of the worker for a while."""
        self._change(name, "silent", state=WorkerState.SUSPECT)

    def heard(self, name: str) -> None:
        """The worker answers."""
        self._change(name, "heard", state=self._state_with(self[name].version))

    def served(self, name: str) -> None:
        """The worker brought something: what was lost before it does not count against its place any more."""
        self._change(name, "served", failures=0)

    def lost(self, name: str) -> WorkerState:
        """The process is gone or useless. Returns RESTARTING, or DEAD after too many failures in a row, or RETIRED if
        it was to go anyway."""
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
        """The worker is to go when it has finished what it holds. Returns DRAINING, or RETIRED if that is now."""
        up = self[name].state in _SERVING
        self._change(name, "drain", state=WorkerState.DRAINING if up else WorkerState.RETIRED)
        return self[name].state

    def drained(self, name: str) -> None:
        """The worker holds nothing any more, and its process has ended."""
        self._change(name, "drained", state=WorkerState.RETIRED, version=None)

    def _state_with(self, version: int | None) -> WorkerState:
        """Of a worker that is up and serves `version`."""
        current = version is not None and version == self.current_version
        return WorkerState.HEALTHY if current else WorkerState.STALE

    def _change(self, name: str, event: str, **changes: object) -> None:
        member = self._members[name]
        if member.state not in _ALLOWED[event]:
            raise ValueError(f"worker {name} is {member.state}: it cannot have {event!r}")
        self._members[name] = replace(member, **changes)  # type: ignore[arg-type]
