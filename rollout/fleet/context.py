"""The services and the shared state of one fleet.

Every piece of state has one writer: the object that holds it. Other objects read its properties, and report events
through its methods; no object assigns an attribute of another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from cluster.core.actor import Actor
from cluster.core.config import RunConfig
from cluster.core.types import PolicyVersion
from cluster.core.weight_transport import WeightCoordinator
from rollout.engine.worker import RolloutWorker
from rollout.fleet.scheduler import Scheduler, ScoringQueue
from rollout.fleet.state import FleetState


class WorkerFactory(Protocol):
    """Starts the processes of rollout workers."""

    @property
    def logs(self) -> Path:
        """The directory of the workers' logs."""

    def free_slots(self) -> int:
        """Return how many more workers the cluster could hold now, as far as its totals tell."""

    def worker(self, name: str) -> AbstractAsyncContextManager[Actor[RolloutWorker]]:
        """Reserve a slot and start a process for member `name`. Both end with the block.

        Raises:
            PlacementError: if there was no slot in time.
        """


class ServedPolicy:
    """The policy version that the fleet is to serve. `RolloutFleet` changes it, and worker loops follow it."""

    def __init__(self) -> None:
        self._version: PolicyVersion | None = None
        self._resting = False

    @property
    def version(self) -> PolicyVersion | None:
        """The version that was published last; None before the first one."""
        return self._version

    @property
    def resting(self) -> bool:
        """True while engines are to sleep until the next version is published."""
        return self._resting

    def publish(self, version: PolicyVersion) -> None:
        self._version = version
        self._resting = False

    def rest(self) -> None:
        self._resting = True


class WorkerRegistry:
    """The processes of the fleet. Supervisors and worker loops report events; the fleet reads."""

    def __init__(self) -> None:
        self._slots: set[str] = set()
        self._process_ids: dict[str, int] = {}
        self._asleep: set[str] = set()
        self._largest_gap = 0.0

    @property
    def any_slot(self) -> bool:
        """True if at least one member has a slot in the cluster."""
        return bool(self._slots)

    @property
    def process_ids(self) -> Mapping[str, int]:
        """The operating system's ids of the processes that are up, by member."""
        return MappingProxyType(self._process_ids)

    @property
    def asleep(self) -> frozenset[str]:
        """The names of the processes whose engine sleeps."""
        return frozenset(self._asleep)

    def slot_reserved(self, member: str) -> None:
        self._slots.add(member)

    def slot_released(self, member: str) -> None:
        self._slots.discard(member)

    def started(self, member: str, process_id: int) -> None:
        self._process_ids[member] = process_id

    def ended(self, member: str, process: str) -> None:
        self._process_ids.pop(member, None)
        self._asleep.discard(process)

    def fell_asleep(self, process: str) -> None:
        self._asleep.add(process)

    def updated(self, process: str, probe_gap: float) -> None:
        """A process serves a new version, which has woken its engine; its largest |Δ log p| on the probe was
        `probe_gap`."""
        self._asleep.discard(process)
        self._largest_gap = max(self._largest_gap, probe_gap)

    def take_probe_gap(self) -> float:
        """Return the largest |Δ log p| on the probe in all updates since the last call; 0 if no update happened."""
        gap, self._largest_gap = self._largest_gap, 0.0
        return gap


@dataclass(frozen=True, slots=True)
class FleetContext:
    """The services that the tasks of one fleet share."""

    config: RunConfig
    factory: WorkerFactory
    scheduler: Scheduler
    scoring: ScoringQueue
    coordinator: WeightCoordinator
    state: FleetState
    policy: ServedPolicy
    registry: WorkerRegistry
    on_event: Callable[[str], None]
    background: asyncio.TaskGroup
