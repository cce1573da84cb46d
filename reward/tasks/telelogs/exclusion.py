"""Whether one cause is there, and the other seven are not, each by a margin. Looks at the world, not at its text.

A solver that reads rounded numbers, or draws a limit a little elsewhere, still comes to the same answer: nothing
that a problem shows lies between the two bounds of a cause. The limits themselves are in `causes`.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from reward.tasks.telelogs.causes import LOW_THROUGHPUT_MBPS, PCI_MODULUS
from reward.tasks.telelogs.drive import Row
from reward.tasks.telelogs.network import Cell

THROUGHPUT_MARGIN_MBPS = 40.0
"""No row is closer to the symptom's limit than this."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the drive shows in its low rows (means), as far as the causes speak of it."""

    lobe_excess_deg: float
    rsrp_dbm: float
    distance_m: float
    offsets_db: tuple[float, ...]
    """How much stronger than the serving cell each neighbour is."""
    foreign_offsets_db: tuple[float, ...]
    """The same, of neighbours at other sites only, strongest first."""
    colliding_offsets_db: tuple[float, ...]
    """The same, of neighbours with the serving cell's PCI modulo 30."""
    handovers: int
    speeds_kmh: tuple[float, ...]
    rbs: float


def gather(cells: Sequence[Cell], rows: Sequence[Row]) -> Evidence:
    """Evidence from a drive with at least one low row."""
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
        # Who is seen in a minority of the rows says nothing of the section.
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
    """Whether a drive with at least one low row shows this cause and none of the others."""
    evidence = gather(cells, rows)
    return _PRESENT[label](evidence) and all(
        absent(evidence) for other, absent in _ABSENT.items() if other != label
    )


def symptom_in(rows: Sequence[Row], low: Sequence[int]) -> bool:
    """Whether exactly the rows at the places `low` have a low throughput, and none is close to the limit."""
    return all(
        row.throughput_mbps <= LOW_THROUGHPUT_MBPS - THROUGHPUT_MARGIN_MBPS
        if i in low
        else row.throughput_mbps >= LOW_THROUGHPUT_MBPS + THROUGHPUT_MARGIN_MBPS
        for i, row in enumerate(rows)
    )
