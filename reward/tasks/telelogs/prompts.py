"""The prompts: the two tables of a problem, in full and compact form, and the text around them.

The wording is ours; its content is that of the published prompts. Texts and tables are data: a change of one byte makes
new results incomparable with old ones.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from reward.tasks.telelogs.causes import CAUSES
from reward.tasks.telelogs.drive import Cell, Row
from reward.tasks.telelogs.problem import Option

MISSING = "-"
_METERS_PER_DEGREE = 111_195.0  # along a great circle, on a sphere with a radius of 6,371 km

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

_BY_LABEL = {cause.label: cause for cause in CAUSES}

_FULL = """\
Below are the user-plane data of a 5G drive test and the engineering parameters of the cells around the road. \
In a section of the road the downlink throughput drops below 600 Mbps. Which of these {count} root causes is the most \
likely reason for the drop?

{options}

How to read the data:
- A digital tilt of 255 is the default and means 6 degrees; any other value is the digital downtilt in degrees. The \
downtilt of a cell is its mechanical downtilt plus its digital downtilt.
- The beam scenario decides the vertical beamwidth: 6 degrees for DEFAULT and SCENARIO_1 to SCENARIO_5, 12 degrees for \
SCENARIO_6 to SCENARIO_11, 25 degrees from SCENARIO_12 on.
- Azimuths are clockwise from north, downtilts below the horizon. The direction of a cell is its mechanical plus its \
digital azimuth. All cells use the same frequency and 273 resource blocks; cells with the same gNodeB ID stand at the \
same site, and a cell ID is the gNodeB ID and the number of the cell within it.
- The drive test has one row per second, and its values are means over that second: the serving cell's SS-RSRP and \
SS-SINR, the downlink throughput of the MAC layer, and the number of resource blocks that were scheduled per slot. \
Neighbours are listed from the strongest to the weakest, first their PCIs, \
then in the same order the RSRP of their best beams. A minus sign alone means that a value is missing.

Drive test:

{drive}

Engineering parameters:

{cells}

Reason step by step, then give the label of exactly one cause, the most likely one, in \\boxed{{}}."""

_COMPACT_HINT = """\
A 5G test drive has a throughput below 600 Mbps. Find the root cause, one of: {options}.
The first table lists cells: PCI, site, distance in m, height in m, downtilt and vertical beamwidth in degrees. \
The second lists seconds: speed in km/h, serving PCI and its RSRP in dBm, throughput in Mbps, three neighbours as PCI \
and RSRP, scheduled resource blocks.

{tables}
Give the label of exactly one cause in \\boxed{{}}."""


def full_question(options: Sequence[Option], drive: str, cells: str) -> str:
    """Return a prompt as long as the published ones."""
    listed = "\n".join(f"{option.printed}: {_BY_LABEL[option.cause].sentence}" for option in options)
    return _FULL.format(count=len(options), options=listed, drive=drive, cells=cells)


def compact_question(options: Sequence[Option], drive: str, cells: str) -> str:
    """Return a prompt for character-level models: `C1 tilt C2 far …`, then cells and drive below their names."""
    listed = " ".join(f"{option.printed} {_BY_LABEL[option.cause].word}" for option in options)
    return f"{listed}\ncells\n{cells}\ndrive\n{drive}\n"


def compact_chat_question(options: Sequence[Option], drive: str, cells: str) -> str:
    """Return a prompt for small instruct models: the compact tables, with an explanation in words."""
    listed = ", ".join(f"{option.printed} {_BY_LABEL[option.cause].word}" for option in options)
    return _COMPACT_HINT.format(options=listed, tables=f"cells\n{cells}\ndrive\n{drive}\n")


@dataclass(frozen=True, slots=True)
class Setting:
    """The place and time of a drive, and the ids of its sites. None of them is related to the cause."""

    longitude: float
    latitude: float
    start: datetime.datetime
    gnodeb_ids: tuple[int, ...]
    """The id of each site; there may be more ids than sites."""

    def coordinates(self, x_m: float, y_m: float) -> tuple[str, str]:
        """Return longitude and latitude of a point in degrees, with as many digits as a drive test writes."""
        latitude = self.latitude + y_m / _METERS_PER_DEGREE
        meters_per_degree_east = _METERS_PER_DEGREE * math.cos(math.radians(self.latitude))
        return f"{self.longitude + x_m / meters_per_degree_east:.9f}", f"{latitude:.9f}"

    def cell_identity(self, cell: Cell) -> int:
        """Return the NR cell identity: 24 bits of the gNodeB ID, then 12 bits of the cell's number within it."""
        return self.gnodeb_ids[cell.gnodeb] << 12 | cell.number


def drive_table(rows: Sequence[Row], cells: Sequence[Cell], setting: Setting) -> str:
    """Return one line per second with all 19 columns; missing neighbours are `-`."""
    lines = ["|".join(DRIVE_COLUMNS)]
    for i, row in enumerate(rows):
        pcis = [str(cells[j].pci) for j, _ in row.neighbours]
        levels = [f"{dbm:.4f}" for _, dbm in row.neighbours]
        missing = [MISSING] * (5 - len(pcis))
        values = [
            (setting.start + datetime.timedelta(seconds=i)).isoformat(" ", "microseconds"),
            *setting.coordinates(row.x_m, row.y_m),
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


def cell_table(cells: Sequence[Cell], setting: Setting) -> str:
    """Return one line per cell in the given order, with all 14 columns."""
    lines = ["|".join(CELL_COLUMNS)]
    for cell in cells:
        values = (
            setting.gnodeb_ids[cell.gnodeb],
            setting.cell_identity(cell),
            *setting.coordinates(cell.x_m, cell.y_m),
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
    """Return one line per second: speed, serving PCI and RSRP, throughput, PCI and RSRP of each neighbour, blocks.

    All numbers are whole, and all numbers of a column have the same width. This is easier for character-level models,
    and the length of a prompt does not reveal if signals are strong or weak.
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
    """Return one line per cell: PCI, site name, meters from the middle of the drive, height, downtilt, beamwidth."""
    x_m, y_m = fmean(row.x_m for row in rows), fmean(row.y_m for row in rows)
    return "\n".join(
        f"{cell.pci:02d} {names[cell.gnodeb]} {cell.distance_m(x_m, y_m):04.0f} {cell.height_m} {cell.tilt_deg:02d} "
        f"{cell.beamwidth_deg:02d}"
        for cell in cells
    )
