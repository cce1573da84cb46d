"""Read options, drive rows and cells from the text of a prompt, for the solver. Independent of the generator.

Columns are found by their headings, so prompts with other column names of the same meaning can be read too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reward.tasks.telelogs.causes import CAUSES, digital_tilt_deg, vertical_beamwidth_deg

EARTH_RADIUS_M = 6_371_000.0


@dataclass(frozen=True, slots=True)
class ReadCell:
    """A cell as the prompt describes it."""

    site: str
    height_m: float
    tilt_deg: float
    beamwidth_deg: float
    position: tuple[float, float] | None
    """Longitude and latitude in degrees, or None if the prompt gives the distance."""
    distance_m: float | None


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row of the drive as the prompt shows it."""

    position: tuple[float, float] | None
    speed_kmh: float
    serving: int
    rsrp_dbm: float
    throughput_mbps: float
    neighbours: tuple[tuple[int, float], ...]
    """Pairs of PCI and RSRP of the neighbours that are not missing."""
    rbs: float


@dataclass(frozen=True, slots=True)
class ReadQuestion:
    """The content of a prompt."""

    options: Mapping[str, str]
    """The cause (C1 … C8) of each printed label."""
    rows: tuple[ReadRow, ...]
    cells: Mapping[int, ReadCell]
    """The cells by PCI."""

    def serving_cell(self, row: ReadRow) -> ReadCell:
        """Return the serving cell of a row, or raise ValueError if the table lacks it."""
        if row.serving not in self.cells:
            raise ValueError(f"no cell of the table has the serving PCI {row.serving}")
        return self.cells[row.serving]

    def distance_m(self, row: ReadRow) -> float:
        """Return the distance from the serving cell to the car on the ground."""
        cell = self.serving_cell(row)
        if cell.distance_m is not None:
            return cell.distance_m
        if cell.position is None or row.position is None:
            raise ValueError("neither a distance nor positions are given")
        return great_circle_m(cell.position, row.position)


# Words that identify a cause, in any known wording.
_KEYWORDS = {
    "C1": r"downtilt|\btilt\b",
    "C2": r"1 ?km|over-?shoot|^far$",
    "C3": r"higher throughput|\bbetter\b",
    "C4": r"overlap",
    "C5": r"handover",
    "C6": r"\bmod|\bpci\b",
    "C7": r"\bspeed\b|40 ?km/h",
    "C8": r"\bRBs?\b|blocks",
}
_OPTION = re.compile(r"^([A-Z]?[0-9]): (.+)$", re.MULTILINE)
_COMPACT_OPTION = re.compile(r"\b([A-Z]?[0-9]) (" + "|".join(cause.word for cause in CAUSES) + r")\b")


def read_question(text: str) -> ReadQuestion:
    """Read a full or a compact prompt.

    Raises:
        ValueError: if the text is neither.
    """
    if "\ncells\n" in text:
        return _read_compact(text)
    options = {printed: _cause_in(sentence) for printed, sentence in _OPTION.findall(text)}
    drive, cells = _pipe_tables(text)
    return ReadQuestion(options, tuple(map(_full_row, drive)), dict(map(_full_cell, cells)))


def great_circle_m(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Return the distance of two points, given as longitude and latitude in degrees (haversine)."""
    (lon_a, lat_a), (lon_b, lat_b) = (tuple(map(math.radians, point)) for point in (a, b))
    half = math.sin((lat_b - lat_a) / 2) ** 2
    half += math.cos(lat_a) * math.cos(lat_b) * math.sin((lon_b - lon_a) / 2) ** 2
    return 2 * EARTH_RADIUS_M * math.asin(math.sqrt(half))


def _cause_in(sentence: str) -> str:
    matching = [cause for cause, words in _KEYWORDS.items() if re.search(words, sentence, re.IGNORECASE)]
    if len(matching) != 1:
        raise ValueError(f"cannot identify the cause in {sentence!r}")
    return matching[0]


def _pipe_tables(text: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the two tables as lists of rows. A row maps headings in lower case to values."""
    tables: list[list[dict[str, str]]] = []
    headings: list[str] = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) < 10:
            headings = []
        elif not headings:
            headings = [field.lower() for field in fields]
            tables.append([])
        else:
            tables[-1].append(dict(zip(headings, fields, strict=True)))
    if len(tables) != 2 or not all(tables):
        raise ValueError(f"a prompt must have two tables with rows, but this one has {len(tables)}")
    return tables[0], tables[1]


def _field(row: Mapping[str, str], *words: str, without: Sequence[str] = ()) -> str:
    """Return the value whose heading contains all of `words` and none of `without`."""
    found = [
        value
        for heading, value in row.items()
        if all(word in heading for word in words) and not any(word in heading for word in without)
    ]
    if len(found) != 1:
        raise ValueError(f"{len(found)} columns match {' … '.join(words)}")
    return found[0]


def _full_row(row: Mapping[str, str]) -> ReadRow:
    neighbours = [
        (int(pci), float(rsrp))
        for n in range(1, 6)
        for pci in [_field(row, "neigh", f" {n} ", "pci")]
        for rsrp in [_field(row, "neigh", f" {n} ", "rsrp")]
        if pci != "-" and rsrp != "-"
    ]
    return ReadRow(
        position=(float(_field(row, "longitude")), float(_field(row, "latitude"))),
        speed_kmh=float(_field(row, "speed")),
        serving=int(_field(row, "serving", "pci", without=["neigh"])),
        rsrp_dbm=float(_field(row, "serving", "rsrp", without=["neigh"])),
        throughput_mbps=float(_field(row, "throughput")),
        neighbours=tuple(neighbours),
        rbs=float(_field(row, "rb", without=["pci"])),
    )


def _full_cell(row: Mapping[str, str]) -> tuple[int, ReadCell]:
    tilt = float(_field(row, "mechanical", "tilt")) + digital_tilt_deg(int(_field(row, "digital", "tilt")))
    return int(_field(row, "pci")), ReadCell(
        site=_field(row, "gnodeb"),
        height_m=float(_field(row, "height")),
        tilt_deg=tilt,
        beamwidth_deg=vertical_beamwidth_deg(_field(row, "beam")),
        position=(float(_field(row, "longitude")), float(_field(row, "latitude"))),
        distance_m=None,
    )


def _read_compact(text: str) -> ReadQuestion:
    before, _, tables = text.partition("\ncells\n")
    cells_text, _, drive_text = tables.partition("\ndrive\n")
    options = {printed: _cause_in(word) for printed, word in _COMPACT_OPTION.findall(before)}
    cells = {}
    for line in cells_text.splitlines():
        pci, site, distance, height, tilt, beamwidth = line.split(" ")
        cells[int(pci)] = ReadCell(site, float(height), float(tilt), float(beamwidth), None, float(distance))
    rows = [_compact_row(line.split(" ")) for line in drive_text.partition("\n\n")[0].splitlines()]
    return ReadQuestion(options, tuple(rows), cells)


def _compact_row(fields: Sequence[str]) -> ReadRow:
    speed, serving, rsrp, throughput, *pairs, rbs = fields
    listed = zip(pairs[::2], pairs[1::2], strict=True)
    neighbours = tuple((int(pci), float(dbm)) for pci, dbm in listed if set(pci) != {"-"})
    return ReadRow(None, float(speed), int(serving), float(rsrp), float(throughput), neighbours, float(rbs))
