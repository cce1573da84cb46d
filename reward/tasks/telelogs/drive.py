"""A drive past some cells, and the table that the test phone writes. Pure: nothing is drawn here."""

from __future__ import annotations

from dataclasses import dataclass

from reward.tasks.telelogs import radio
from reward.tasks.telelogs.network import Cell, coupling

WEAKEST_LISTED_DBM = -130.0
"""A neighbour below it is not found by the phone (ours)."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """All that decides what is measured. Each row of the table is one second; cells are named by their place in
    `cells`."""

    cells: tuple[Cell, ...]
    track: tuple[tuple[float, float], ...]
    """Metres east and north, one pair per row."""
    speeds_kmh: tuple[float, ...]
    serving: tuple[int, ...]
    """Which cell serves in which row."""
    gains_db: tuple[tuple[float, ...], ...]
    """What buildings and fading add to a cell's RSRP: a tuple over cells for each row."""
    rbs: tuple[float, ...]
    """Resource blocks scheduled, a mean over the second."""
    noise: tuple[float, ...]
    """Of the measured throughput, as a factor."""
    recovery: float
    """What handovers before the first row left of the rate."""
    missed: frozenset[tuple[int, int]]
    """Pairs of row and cell that the phone did not list."""
    neighbours: int
    """How many the phone lists."""


@dataclass(frozen=True, slots=True)
class Row:
    """One second of the drive-test table."""

    x_m: float
    y_m: float
    speed_kmh: float
    serving: int
    rsrp_dbm: float
    sinr_db: float
    throughput_mbps: float
    neighbours: tuple[tuple[int, float], ...]
    """Cell and RSRP in dBm, strongest first; fewer than the phone lists where it found no more."""
    rbs: float


def drive(scenario: Scenario) -> tuple[Row, ...]:
    """What the phone measures."""
    rows = []
    recovery = scenario.recovery / 2
    for i, (x_m, y_m) in enumerate(scenario.track):
        handover = i > 0 and scenario.serving[i] != scenario.serving[i - 1]
        recovery = recovery * radio.RECOVERY_AFTER_HANDOVER if handover else min(1.0, 2 * recovery)
        rows.append(_row(scenario, i, x_m, y_m, recovery))
    return tuple(rows)


def _row(scenario: Scenario, i: int, x_m: float, y_m: float, recovery: float) -> Row:
    levels = [
        cell.rsrp_dbm(x_m, y_m) + gain
        for cell, gain in zip(scenario.cells, scenario.gains_db[i], strict=True)
    ]
    serving = scenario.serving[i]
    cell = scenario.cells[serving]
    others = [j for j in range(len(levels)) if j != serving]
    sinr = radio.sinr_db(levels[serving], [(levels[j], coupling(cell, scenario.cells[j])) for j in others])
    mbps = radio.throughput_mbps(scenario.rbs[i], sinr, scenario.speeds_kmh[i], recovery) * scenario.noise[i]
    found = [j for j in others if levels[j] >= WEAKEST_LISTED_DBM and (i, j) not in scenario.missed]
    strongest = sorted(found, key=lambda j: -levels[j])[: scenario.neighbours]
    return Row(
        x_m=x_m,
        y_m=y_m,
        speed_kmh=scenario.speeds_kmh[i],
        serving=serving,
        rsrp_dbm=levels[serving],
        sinr_db=sinr,
        throughput_mbps=mbps,
        neighbours=tuple((j, levels[j]) for j in strongest),
        rbs=scenario.rbs[i],
    )
