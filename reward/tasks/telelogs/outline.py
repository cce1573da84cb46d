"""What a problem looks like from afar. It is drawn before the cause is, so that it cannot give the cause away."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Size = Literal["full", "compact"]

# How often a problem has what another cause would look like at first sight (ours).
LOOKALIKE_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class Outline:
    """How large the tables are, and where in the drive the throughput is low."""

    sectors_per_site: tuple[int, ...]
    """The serving site's come first."""
    rows: int
    approach_rows: int
    """The first rows, which another cell serves well. In all rows after them the throughput is low."""
    neighbours: int
    """How many the phone lists in each row."""
    largest_pci: int
    heading_deg: float
    """Of the road, clockwise from north."""

    @property
    def low_rows(self) -> range:
        return range(self.approach_rows, self.rows)


_SITES = (
    (3, 2, 1),
    (2, 3, 1),
    (2, 2, 2),
    (3, 3, 1),
    (3, 2, 2),
    (2, 3, 2),
    (2, 2, 2, 1),
    (3, 3, 2),
    (3, 2, 2, 1),
)


def draw_outline(size: Size, rng: random.Random) -> Outline:
    """`full` is as large as the published problems, ten rows and six to eight cells; `compact` has five and four."""
    heading = rng.uniform(0, 360)
    if size == "compact":
        return Outline((2, 1, 1), rows=5, approach_rows=0, neighbours=3, largest_pci=99, heading_deg=heading)
    approach = rng.randint(0, 4)
    return Outline(
        rng.choice(_SITES),
        rows=10,
        approach_rows=approach,
        neighbours=5,
        largest_pci=1007,
        heading_deg=heading,
    )
