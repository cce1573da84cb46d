"""The eight causes, and the numerical limits that define them.

Every definition is here once: the generator makes problems that keep a distance from these limits, and the rule-based
solver applies them. Limits marked *ours* are not given by the published task.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cause:
    """One of the possible answers."""

    label: str
    """The label in the published data: C1 … C8."""
    sentence: str
    """The description in full prompts."""
    word: str
    """The description in compact prompts, for small models."""


CAUSES = (
    Cause(
        "C1", "The downtilt of the serving cell is too large, so that its far end is covered weakly.", "tilt"
    ),
    Cause("C2", "The serving cell overshoots: it covers the road from more than 1 km away.", "far"),
    Cause("C3", "A neighbouring cell would give a higher throughput than the serving cell does.", "better"),
    Cause("C4", "Co-frequency neighbours at other sites overlap severely with the serving cell.", "overlap"),
    Cause("C5", "Handovers are so frequent that the throughput does not recover between them.", "handover"),
    Cause("C6", "A neighbour with the same PCI modulo 30 as the serving cell interferes with it.", "pci"),
    Cause("C7", "The test vehicle drives faster than 40 km/h, which costs throughput.", "speed"),
    Cause("C8", "On average fewer than 160 resource blocks are scheduled.", "blocks"),
)
LABELS = tuple(cause.label for cause in CAUSES)

LOW_THROUGHPUT_MBPS = 600.0
"""The limit of the symptom. A row below it is a *low row*. Every limit below applies to a mean over the low rows."""

# C1: seen from the antenna, the car is above the main lobe by more than the first limit, and the signal is weak.
LOBE_EXCESS_DEG = 2.0  # ours
WEAK_RSRP_DBM = -90.0  # ours
# C2
FAR_M = 1000.0
# C3: the strongest neighbour is stronger than the serving cell by more than this.
BETTER_BY_DB = 5.0  # ours
# C4: at least this many neighbours at other sites are as strong as the serving cell, within this difference.
OVERLAPPING_NEIGHBOURS = 2  # ours
OVERLAP_DB = 6.0  # ours
# C5: changes of the serving PCI in the whole drive.
FREQUENT_HANDOVERS = 3  # ours
# C6: a neighbour with the same remainder is weaker than the serving cell by less than this.
PCI_MODULUS = 30
COLLISION_DB = 10.0  # ours
# C7
FAST_KMH = 40.0
# C8
FEW_RBS = 160.0

DEFAULT_DIGITAL_TILT = 255
DEFAULT_DIGITAL_TILT_DEG = 6


def digital_tilt_deg(code: int) -> int:
    """Return the tilt for a value in the engineering table: 255 stands for 6 degrees, other values for themselves."""
    return DEFAULT_DIGITAL_TILT_DEG if code == DEFAULT_DIGITAL_TILT else code


@functools.cache
def vertical_beamwidth_deg(scenario: str) -> int:
    """Return the width of a beam scenario: 6 for `DEFAULT` and `SCENARIO_1` to `_5`, 12 up to `_11`, else 25.

    Raises:
        ValueError: if it is not the name of a beam scenario.
    """
    name = scenario.strip().upper()
    if name == "DEFAULT":
        return 6
    kind, _, number = name.rpartition("_")
    if kind != "SCENARIO" or not (number.isascii() and number.isdigit()):
        raise ValueError(f"{scenario!r} is not a beam scenario")
    return 6 if int(number) <= 5 else 12 if int(number) <= 11 else 25
