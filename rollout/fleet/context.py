"""What those who look after the workers of one fleet share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.core.config import RunConfig
from cluster.core.types import PolicyVersion
from cluster.training.worker_factory import WorkerFactory
from rollout.fleet.scheduler import Scheduler
from rollout.fleet.scoring import ScoringQueue
from rollout.fleet.state import FleetState
from rollout.fleet.weight_sync import WeightTransport


@dataclass(slots=True)
class FleetContext:
    """Where they meet."""

    config: RunConfig
    places: WorkerFactory
    judging: ScoringQueue
    on_event: Callable[[str], None]
    state: FleetState
    dispatch: Scheduler
    background: asyncio.TaskGroup
    transport: WeightTransport
    policy: PolicyVersion | None = None
    resting: bool = False
    """Engines are to sleep until something is published."""
    asleep: set[str] = field(default_factory=set)
    """Names of the processes whose engine sleeps."""
    placed: set[str] = field(default_factory=set)
    """Names of those that have a place in the cluster."""
    probe_gaps: list[float] = field(default_factory=list)
    process_ids: dict[str, int] = field(default_factory=dict)
