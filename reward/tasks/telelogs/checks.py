"""Checks of a generated drive: one cause holds, no other cause does, and the drive is fine without that cause.

The first two checks keep margins. A solver that reads rounded numbers, or draws a limit slightly elsewhere, comes to
the same answer, because no problem shows a value between the two bounds of a cause. The limits are in `causes`. The
checks look at the simulated drive, not at the text of the problem.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from reward.tasks.telelogs import radio
from reward.tasks.telelogs.causes import LOW_THROUGHPUT_MBPS, PCI_MODULUS
from reward.tasks.telelogs.drive import Cell, Row, Scenario, drive

THROUGHPUT_MARGIN_MBPS = 40.0
"""The smallest distance of any row from the limit of the symptom."""

_NEAR_M = 550.0
_SLOW_KMH = 28.0
_USUAL_RBS = 235.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """The values of a drive that the causes refer to: means over its low rows, unless stated otherwise."""

    lobe_excess_deg: float
    rsrp_dbm: float
    distance_m: float
    offsets_db: tuple[float, ...]
    """The strength of each neighbour relative to the serving cell, strongest first."""
    foreign_offsets_db: tuple[float, ...]
    """The strength of neighbours at other sites only, strongest first."""
    colliding_offsets_db: tuple[float, ...]
    """The strength of neighbours with the serving cell's PCI modulo 30."""
    handovers: int
    """The number of changes of the serving cell in the whole drive."""
    speeds_kmh: tuple[float, ...]
    """The speed in each low row."""
    rbs: float


def gather(cells: Sequence[Cell], rows: Sequence[Row]) -> Evidence:
    """Return the evidence of a drive with at least one low row."""
    low = [row for row in rows if row.throughput_mbps < LOW_THROUGHPUT_MBPS]
    offsets, foreign, colliding = defaultdict(list), defaultdict(list), defaultdict(list)
    for row in low:
        serving = cells[row.serving]
        for j, rsrp_dbm in row.neighbours:
            offset = rsrp_dbm - row.rsrp_dbm
            offsets[j].append(offset)
            if cells[j].gnodeb != serving.gnodeb:
                foreign[j].append(offset)
            if (cells[j].pci - serving.pci) % PCI_MODULUS == 0:
                colliding[j].append(offset)

    def means(of: dict[int, list[float]]) -> tuple[float, ...]:
        # A neighbour that is listed in a minority of the rows says nothing about the section.
        return tuple(sorted((fmean(each) for each in of.values() if 2 * len(each) >= len(low)), reverse=True))

    return Evidence(
        lobe_excess_deg=fmean(cells[row.serving].lobe_excess_deg(row.x_m, row.y_m) for row in low),
        rsrp_dbm=fmean(row.rsrp_dbm for row in low),
        distance_m=fmean(cells[row.serving].distance_m(row.x_m, row.y_m) for row in low),
        offsets_db=means(offsets),
        foreign_offsets_db=means(foreign),
        colliding_offsets_db=means(colliding),
        handovers=sum(a.serving != b.serving for a, b in itertools.pairwise(rows)),
        speeds_kmh=tuple(row.speed_kmh for row in low),
        rbs=fmean(row.rbs for row in low),
    )


_PRESENT: dict[str, Callable[[Evidence], bool]] = {
    "C1": lambda e: e.lobe_excess_deg >= 3.5 and e.rsrp_dbm <= -93,
    "C2": lambda e: e.distance_m >= 1080,
    "C3": lambda e: max(e.offsets_db, default=-99) >= 7,
    "C4": lambda e: sum(-4.5 <= offset <= 3 for offset in e.foreign_offsets_db) >= 2,
    "C5": lambda e: e.handovers >= 3,
    "C6": lambda e: max(e.colliding_offsets_db, default=-99) >= -7,
    "C7": lambda e: min(e.speeds_kmh) >= 44,
    "C8": lambda e: e.rbs <= 145,
}
_ABSENT: dict[str, Callable[[Evidence], bool]] = {
    "C1": lambda e: e.lobe_excess_deg <= 0.5,
    "C2": lambda e: e.distance_m <= 920,
    "C3": lambda e: max(e.offsets_db, default=-99) <= 3,
    "C4": lambda e: sum(-8 <= offset <= 8 for offset in e.foreign_offsets_db) <= 1,
    "C5": lambda e: e.handovers <= 1,
    "C6": lambda e: max(e.colliding_offsets_db, default=-99) <= -14,
    "C7": lambda e: max(e.speeds_kmh) <= 36,
    "C8": lambda e: e.rbs >= 175,
}


def only_cause(label: str, cells: Sequence[Cell], rows: Sequence[Row]) -> bool:
    """Return True if a drive with at least one low row shows this cause and no other."""
    evidence = gather(cells, rows)
    return _PRESENT[label](evidence) and all(
        absent(evidence) for other, absent in _ABSENT.items() if other != label
    )


def symptom_in(rows: Sequence[Row], low: Sequence[int]) -> bool:
    """Return True if exactly the rows `low` have a low throughput, and no row is close to the limit."""
    return all(
        row.throughput_mbps <= LOW_THROUGHPUT_MBPS - THROUGHPUT_MARGIN_MBPS
        if i in low
        else row.throughput_mbps >= LOW_THROUGHPUT_MBPS + THROUGHPUT_MARGIN_MBPS
        for i, row in enumerate(rows)
    )


def repaired(scenario: Scenario, label: str, low_rows: range) -> Scenario:
    """Return the same drive without the cause `label`: one thing is changed, as an engineer would fix it.

    If the throughput is then no longer low, `label` is indeed the cause.
    """
    serving = scenario.serving[low_rows.start]
    cells = scenario.cells
    if label == "C1":  # point the beam at the road
        depression = round(radio.depression_deg(cells[serving].height_m, cells[serving].distance_m(0, 0)))
        return _with(scenario, {serving: {"mechanical_tilt_deg": depression, "digital_tilt": 0}})
    if label == "C2":  # move the site near the road
        scale = _NEAR_M / cells[serving].distance_m(0, 0)
        moved = {"x_m": cells[serving].x_m * scale, "y_m": cells[serving].y_m * scale}
        return _with(scenario, {serving: moved})
    if label == "C3":  # hand over to the better neighbour
        better = drive(scenario)[low_rows[len(low_rows) // 2]].neighbours[0][0]
        kept = scenario.serving[: low_rows.start]
        return replace(scenario, serving=(*kept, *[better] * len(low_rows)))
    if label == "C4":  # turn the overlapping cells away
        return _with(
            scenario, {j: _turned_away(cells[j]) for j in _equally_strong(scenario, serving, low_rows)}
        )
    if label == "C5":  # avoid handovers
        kept = scenario.serving[: low_rows.start]
        return replace(scenario, serving=(*kept, *[serving] * len(low_rows)), recovery=1.0)
    if label == "C6":  # change the PCI
        own = cells[serving].pci
        return _with(
            scenario,
            {
                j: {"pci": c.pci + 1}
                for j, c in enumerate(cells)
                if j != serving and (c.pci - own) % PCI_MODULUS == 0
            },
        )
    if label == "C7":
        return replace(scenario, speeds_kmh=tuple(min(speed, _SLOW_KMH) for speed in scenario.speeds_kmh))
    if label == "C8":
        return replace(scenario, rbs=tuple(max(rbs, _USUAL_RBS) for rbs in scenario.rbs))
    raise ValueError(f"there is no cause {label!r}")


def _with(scenario: Scenario, changes: Mapping[int, Mapping[str, Any]]) -> Scenario:
    cells = tuple(replace(cell, **changes.get(j, {})) for j, cell in enumerate(scenario.cells))
    return replace(scenario, cells=cells)


def _turned_away(cell: Cell) -> dict[str, int]:
    away = round(cell.azimuth_deg + 180) % 360
    return {"mechanical_azimuth_deg": away, "digital_azimuth_deg": 0}


def _equally_strong(scenario: Scenario, serving: int, low_rows: range) -> Collection[int]:
    """Return the cells of other sites that are about as strong as the serving cell in the middle of the low rows."""
    row = drive(scenario)[low_rows[len(low_rows) // 2]]
    site = scenario.cells[serving].gnodeb
    return [j for j, dbm in row.neighbours if scenario.cells[j].gnodeb != site and dbm > row.rsrp_dbm - 8]
