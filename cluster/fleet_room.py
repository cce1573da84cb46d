"""What those who look after the workers of one fleet share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.config import RunConfig
from cluster.contracts import Publication
from cluster.dispatch import Dispatch
from cluster.judging import Judging
from cluster.weight_carriers import WeightCarrier
from cluster.worker_places import WorkerPlaces
from rollout.fleet_state import FleetState


@dataclass(slots=True)
class FleetRoom:
    """Where they meet."""

    config: RunConfig
    places: WorkerPlaces
    judging: Judging
    on_event: Callable[[str], None]
    state: FleetState
    dispatch: Dispatch
    background: asyncio.TaskGroup
    carrier: WeightCarrier
    publication: Publication | None = None
    resting: bool = False
    """Engines are to sleep until something is published."""
    asleep: set[str] = field(default_factory=set)
    """Names of the processes whose engine sleeps."""
    placed: set[str] = field(default_factory=set)
    """Names of those that have a place in the cluster."""
    probe_gaps: list[float] = field(default_factory=list)
    process_ids: dict[str, int] = field(default_factory=dict)
