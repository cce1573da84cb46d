"""Membership of the rollout fleet: a list of workers, each in one state. Pure: no Ray, no clock.

    STARTING ─started─▶ STALE ─pulled─▶ HEALTHY ─published─▶ STALE …
        │                 │                │
        └────── lost ─────┴───── lost ─────┘──▶ RESTARTING ─started─▶ STALE      while its restart budget lasts,
                                           └──▶ DEAD                             then its place is given up

A worker serves prompts only when HEALTHY, that is, when it has pulled the current weight version: a new one, a
replaced one and one that lags behind all pass through STALE.

Without a learner nothing is published. Then `serve_as_loaded` makes the weights that every process loads when it
starts the current version, and `started` leads straight to HEALTHY.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

LOADED_VERSION = 0
"""Of the weights that a process has when it has loaded the model and pulled nothing."""


class WorkerState(StrEnum):
    STARTING = "starting"
    STALE = "stale"
    HEALTHY = "healthy"
    RESTARTING = "restarting"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Member:
    """One place in the fleet. `incarnation` counts the processes that have held it, from 0."""

    name: str
    state: WorkerState = WorkerState.STARTING
    version: int | None = None
    incarnation: int = 0


_ALLOWED: dict[str, frozenset[WorkerState]] = {
    "started": frozenset({WorkerState.STARTING, WorkerState.RESTARTING}),
    "pulled": frozenset({WorkerState.STALE, WorkerState.HEALTHY}),
    "lost": frozenset(WorkerState) - {WorkerState.DEAD},
}


class FleetState:
    """The members and the current weight version. Every change goes through one of its events."""

    def __init__(self, names: list[str], restarts_per_worker: int) -> None:
        self._members = {name: Member(name) for name in names}
        self._restarts_per_worker = restarts_per_worker
        self._serves_as_loaded = False
        self.current_version: int | None = None

    def __getitem__(self, name: str) -> Member:
        return self._members[name]

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(self._members.values())

    @property
    def healthy(self) -> int:
        return sum(member.state is WorkerState.HEALTHY for member in self.members)

    @property
    def alive(self) -> int:
        """Members that serve or may serve again."""
        return sum(member.state is not WorkerState.DEAD for member in self.members)

    @property
    def started_workers(self) -> int:
        """Members whose process is up."""
        return sum(member.state in (WorkerState.STALE, WorkerState.HEALTHY) for member in self.members)

    @property
    def restarts(self) -> int:
        return sum(member.incarnation for member in self.members)

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
            if member.state is WorkerState.STALE:
                self._members[member.name] = replace(
                    member, state=WorkerState.HEALTHY, version=LOADED_VERSION
                )

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

    def lost(self, name: str) -> WorkerState:
        """The process is gone or useless. Returns RESTARTING, or DEAD when its restarts are used up."""
        member = self._members[name]
        if member.incarnation >= self._restarts_per_worker:
            self._change(name, "lost", state=WorkerState.DEAD, version=None)
        else:
            self._change(
                name,
                "lost",
                state=WorkerState.RESTARTING,
                version=None,
                incarnation=member.incarnation + 1,
            )
        return self._members[name].state

    def _state_with(self, version: int | None) -> WorkerState:
        """Of a worker that is up and serves `version`."""
        current = version is not None and version == self.current_version
        return WorkerState.HEALTHY if current else WorkerState.STALE

    def _change(self, name: str, event: str, **changes: object) -> None:
        member = self._members[name]
        if member.state not in _ALLOWED[event]:
            raise ValueError(f"worker {name} is {member.state}: it cannot have {event!r}")
        self._members[name] = replace(member, **changes)  # type: ignore[arg-type]
