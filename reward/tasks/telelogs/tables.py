"""The two tables of a problem, as published and in short."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from reward.tasks.telelogs.drive import Row
from reward.tasks.telelogs.network import Cell

MISSING = "-"
_METRES_PER_DEGREE = 111_195.0  # of a great circle, on a sphere of 6,371 km

DRIVE_COLUMNS = (
    "Timestamp",
    "Longitude",
    "Latitude",
    "GPS speed [km/h]",
    "Serving PCI",
    "Serving SS-RSRP [dBm]",
    "Serving SS-SINR [dB]",
    "DL MAC throughput [Mbps]",
    *(f"Neighbour {n} PCI" for n in range(1, 6)),
    *(f"Neighbour {n} beam RSRP [dBm]" for n in range(1, 6)),
    "Scheduled DL RBs per slot",
)
CELL_COLUMNS = (
    "gNodeB ID",
    "Cell ID",
    "Longitude",
    "Latitude",
    "Mechanical azimuth [deg]",
    "Digital azimuth [deg]",
    "Mechanical downtilt [deg]",
    "Digital tilt [deg]",
    "Beam scenario",
    "Height [m]",
    "PCI",
    "TxRx mode",
    "Max transmit power [dBm]",
    "Antenna model",
)


@dataclass(frozen=True, slots=True)
class RankDevice:
    """Where and when a drive was, and what its sites are called: none of it bears on the cause."""

    longitude: float
    latitude: float
    start: datetime.datetime
    gnodeb_ids: tuple[int, ...]
    """By site; at least as many as there are."""

    def coordinates(self, x_m: float, y_m: float) -> tuple[str, str]:
        """Longitude and latitude of a point, in degrees, with as many digits as a drive test writes."""
        latitude = self.latitude + y_m / _METRES_PER_DEGREE
        metres_per_degree_east = _METRES_PER_DEGREE * math.cos(math.radians(self.latitude))
        return f"{self.longitude + x_m / metres_per_degree_east:.9f}", f"{latitude:.9f}"

    def cell_identity(self, cell: Cell) -> int:
        """The NR cell identity: 24 bits of the gNodeB ID, then 12 of the cell's number within it."""
        return self.gnodeb_ids[cell.gnodeb] << 12 | cell.number


def drive_table(rows: Sequence[Row], cells: Sequence[Cell], place: RankDevice) -> str:
    """One line per second, all 19 columns, missing neighbours as `-`."""
    lines = ["|".join(DRIVE_COLUMNS)]
    for i, row in enumerate(rows):
        pcis = [str(cells[j].pci) for j, _ in row.neighbours]
        levels = [f"{dbm:.4f}" for _, dbm in row.neighbours]
        missing = [MISSING] * (5 - len(pcis))
        values = [
            (place.start + datetime.timedelta(seconds=i)).isoformat(" ", "microseconds"),
            *place.coordinates(row.x_m, row.y_m),
            f"{row.speed_kmh:.2f}",
            str(cells[row.serving].pci),
            f"{row.rsrp_dbm:.4f}",
            f"{row.sinr_db:.4f}",
            f"{row.throughput_mbps:.4f}",
            *pcis,
            *missing,
            *levels,
            *missing,
            f"{row.rbs:.4f}",
        ]
        lines.append("|".join(values))
    return "\n".join(lines)


def cell_table(cells: Sequence[Cell], place: RankDevice) -> str:
    """One line per cell in the given order, all 14 columns."""
    lines = ["|".join(CELL_COLUMNS)]
    for cell in cells:
        values = (
            place.gnodeb_ids[cell.gnodeb],
            place.cell_identity(cell),
            *place.coordinates(cell.x_m, cell.y_m),
            cell.mechanical_azimuth_deg,
            cell.digital_azimuth_deg,
            cell.mechanical_tilt_deg,
            cell.digital_tilt,
            cell.beam_scenario,
            cell.height_m,
            cell.pci,
            cell.txrx_mode,
            cell.power_dbm,
            cell.antenna,
        )
        lines.append("|".join(map(str, values)))
    return "\n".join(lines)


def compact_drive_table(rows: Sequence[Row], cells: Sequence[Cell], neighbours: int) -> str:
    """Speed, serving PCI and RSRP, throughput, pairs of PCI and RSRP of the neighbours, resource blocks; all whole.

    Every number of a column has the same width: that is easier for character-level models, and the length of a
    question, which would tell strong signals from weak ones, tells nothing.
    """
    lines = []
    for row in rows:
        pairs = [_compact_pair(cells[j].pci, dbm) for j, dbm in row.neighbours]
        pairs += [f"{MISSING * 2} {MISSING * 4}"] * (neighbours - len(pairs))
        serving = _compact_pair(cells[row.serving].pci, row.rsrp_dbm)
        measured = f"{row.speed_kmh:02.0f} {serving} {row.throughput_mbps:03.0f}"
        lines.append(f"{measured} {' '.join(pairs)} {row.rbs:03.0f}")
    return "\n".join(lines)


def _compact_pair(pci: int, dbm: float) -> str:
    return f"{pci:02d} {dbm:04.0f}"


def compact_cell_table(cells: Sequence[Cell], rows: Sequence[Row], names: Sequence[str]) -> str:
    """PCI, site (of `names`), metres from the middle of the drive, height, whole downtilt, vertical beamwidth."""
    x_m, y_m = fmean(row.x_m for row in rows), fmean(row.y_m for row in rows)
    return "\n".join(
        f"{cell.pci:02d} {names[cell.gnodeb]} {cell.distance_m(x_m, y_m):04.0f} {cell.height_m} {cell.tilt_deg:02d} "
        f"{cell.beamwidth_deg:02d}"
        for cell in cells
    )
