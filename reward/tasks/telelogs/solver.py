"""A rule-based solver: it applies the definitions of the causes to the text of a prompt. Independent of the generator.

It shows that the problems can be solved, and gives the upper limit for the accuracy of a model.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import fmean

from reward.tasks.telelogs import causes
from reward.tasks.telelogs.parsing import ReadQuestion, ReadRow, read_question

_PHONE_HEIGHT_M = 1.5


def solve(text: str) -> str | None:
    """Return the printed label of the cause that holds, or None if no cause holds.

    If several causes hold, the most directly visible one is chosen: vehicle and scheduler before cells, and the serving
    cell before its neighbours.

    Raises:
        ValueError: if the text cannot be read as a prompt.
    """
    question = read_question(text)
    for cause, holds in _RULES.items():
        for printed, offered in question.options.items():
            if offered == cause and holds(question):
                return printed
    return None


def _low_rows(question: ReadQuestion) -> list[ReadRow]:
    """Return the rows with the symptom, or all rows if no row has it."""
    low = [row for row in question.rows if row.throughput_mbps < causes.LOW_THROUGHPUT_MBPS]
    return low or list(question.rows)


def _offsets_db(question: ReadQuestion) -> Mapping[int, float]:
    """Return by PCI the mean strength of a neighbour relative to the serving cell, over the low rows.

    Neighbours that are listed in less than half of these rows are left out.
    """
    low = _low_rows(question)
    seen: dict[int, list[float]] = defaultdict(list)
    for row in low:
        for pci, rsrp in row.neighbours:
            seen[pci].append(rsrp - row.rsrp_dbm)
    return {pci: fmean(offsets) for pci, offsets in seen.items() if 2 * len(offsets) >= len(low)}


def _typical_row(question: ReadQuestion) -> ReadRow:
    """Return a low row with the cell that serves most of the low rows."""
    low = _low_rows(question)
    served = [row.serving for row in low]
    return max(low, key=lambda row: served.count(row.serving))


def _too_fast(question: ReadQuestion) -> bool:
    return fmean(row.speed_kmh for row in _low_rows(question)) > causes.FAST_KMH


def _too_few_blocks(question: ReadQuestion) -> bool:
    return fmean(row.rbs for row in _low_rows(question)) < causes.FEW_RBS


def _too_many_handovers(question: ReadQuestion) -> bool:
    served = [row.serving for row in question.rows]
    return sum(a != b for a, b in itertools.pairwise(served)) >= causes.FREQUENT_HANDOVERS


def _too_far(question: ReadQuestion) -> bool:
    return fmean(map(question.distance_m, _low_rows(question))) > causes.FAR_M


def _tilted_too_much(question: ReadQuestion) -> bool:
    """Return True if the car is above the upper half-power edge of the main lobe and the signal is weak."""
    low = _low_rows(question)

    def excess_deg(row: ReadRow) -> float:
        cell = question.serving_cell(row)
        below_horizon = math.degrees(math.atan((cell.height_m - _PHONE_HEIGHT_M) / question.distance_m(row)))
        return cell.tilt_deg - cell.beamwidth_deg / 2 - below_horizon

    weak = fmean(row.rsrp_dbm for row in low) < causes.WEAK_RSRP_DBM
    return weak and fmean(map(excess_deg, low)) > causes.LOBE_EXCESS_DEG


def _colliding(question: ReadQuestion) -> bool:
    serving = _typical_row(question).serving
    return any(
        offset > -causes.COLLISION_DB and pci % causes.PCI_MODULUS == serving % causes.PCI_MODULUS
        for pci, offset in _offsets_db(question).items()
    )


def _better_neighbour(question: ReadQuestion) -> bool:
    return any(offset > causes.BETTER_BY_DB for offset in _offsets_db(question).values())


def _overlapping(question: ReadQuestion) -> bool:
    site = question.serving_cell(_typical_row(question)).site
    overlapping = [
        pci
        for pci, offset in _offsets_db(question).items()
        if abs(offset) < causes.OVERLAP_DB
        # A cell that the table does not list counts as a cell of another site.
        and (pci not in question.cells or question.cells[pci].site != site)
    ]
    return len(overlapping) >= causes.OVERLAPPING_NEIGHBOURS


_RULES: Mapping[str, Callable[[ReadQuestion], bool]] = {
    "C7": _too_fast,
    "C8": _too_few_blocks,
    "C5": _too_many_handovers,
    "C2": _too_far,
    "C1": _tilted_too_much,
    "C6": _colliding,
    "C3": _better_neighbour,
    "C4": _overlapping,
}
