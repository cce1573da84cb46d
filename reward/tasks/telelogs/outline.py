"""The outline of a problem: the sizes of its tables. It is drawn before the cause, so it cannot reveal the cause."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Size = Literal["full", "compact"]

# The fraction of problems with a feature that looks like another cause at first sight (ours).
LOOKALIKE_FRACTION = 0.4


@dataclass(frozen=True, slots=True)
class Outline:
    """The sizes of the tables, and the rows of the drive with a low throughput."""

    sectors_per_site: tuple[int, ...]
    """The number of sectors of each site; the first site serves."""
    rows: int
    """The number of rows of the drive."""
    approach_rows: int
    """The number of first rows, which another cell serves well. In all later rows the throughput is low."""
    neighbours: int
    """The number of neighbours that the phone lists in each row."""
    largest_pci: int
    heading_deg: float
    """The direction of the road, clockwise from north."""

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
    """Draw an outline: `full` is as large as the published problems (ten rows, six to eight cells), `compact` has five
    rows and four cells."""
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
