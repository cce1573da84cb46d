"""The cells around a road, drawn so that a given cause is possible.

Positions and antennas are drawn first. The effect of buildings is then chosen so that the signal strengths have the
intended relation; if that is not plausible, the draw is discarded.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from reward.tasks.telelogs import radio
from reward.tasks.telelogs.causes import DEFAULT_DIGITAL_TILT, DEFAULT_DIGITAL_TILT_DEG, PCI_MODULUS
from reward.tasks.telelogs.drive import Cell
from reward.tasks.telelogs.outline import LOOKALIKE_FRACTION, Outline

# The effect of buildings on a cell's RSRP (ours; TR 38.901 has a standard deviation of 7.8 dB). Below it, the path is
# blocked.
GAIN_RANGE_DB = (-18.0, 12.0)
SHADOWING_DB = 6.0

_TRIES_PER_SITE = 8
_SCENARIOS = {6: ("DEFAULT", *(f"SCENARIO_{n}" for n in range(1, 6))), 12: (), 25: ()}
_SCENARIOS[12] = tuple(f"SCENARIO_{n}" for n in range(6, 12))
_SCENARIOS[25] = tuple(f"SCENARIO_{n}" for n in range(12, 18))
_HARDWARE = (("64T64R", "NR AAU 1"), ("64T64R", "NR AAU 2"), ("32T32R", "NR AAU 3"), ("32T32R", "NR AAU 4"))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The cells and their gains in the low rows. Cell 0 serves there; cell 1 is a sector of the same site."""

    cells: tuple[Cell, ...]
    gains_db: tuple[float, ...]
    strong: tuple[int, ...]
    """The cells of other sites that are about as strong as the serving cell, or stronger."""


def draw_surroundings(label: str, outline: Outline, rng: random.Random) -> Surroundings | None:
    """Draw the surroundings. Return None if the draw is not plausible."""
    for _ in range(_TRIES_PER_SITE):
        own = _serving_site(label, outline.sectors_per_site[0], rng)
        gain = _shadowing(rng)
        level = own[0].rsrp_dbm(0, 0) + gain
        if _plausible_level(label, level):
            break
    else:
        return None
    cells = list(own)
    gains = [gain + (rng.uniform(-1, 1) if i else 0) for i in range(len(own))]  # one site, one radio path
    strong: list[int] = []
    targets = _strong_targets(label, len(outline.sectors_per_site) - 1, rng)
    for site, sectors in enumerate(outline.sectors_per_site[1:], start=1):
        target = level + targets[site - 1] if site <= len(targets) else None
        drawn = _other_site(site, sectors, target, level - 10.5, cells, rng)
        if drawn is None:
            return None
        if target is not None:
            strong.append(len(cells))
        cells += drawn[0]
        gains += drawn[1]
    weak = [j for j, cell in enumerate(cells) if cell.rsrp_dbm(0, 0) + gains[j] < level - 16]
    colliding = _draw_colliding(label, strong, [j for j in weak if cells[j].gnodeb != own[0].gnodeb], rng)
    named = _numbered(_with_pcis(cells, colliding, outline.largest_pci, rng), rng)
    return Surroundings(tuple(named), tuple(gains), tuple(strong))


def _plausible_level(label: str, level_dbm: float) -> bool:
    weak = label in ("C1", "C2")
    return -108 <= level_dbm <= -93 if weak else -91 <= level_dbm <= -60


def _strong_targets(label: str, sites: int, rng: random.Random) -> list[float]:
    """Draw the intended strengths of the strongest cells of other sites, in dB relative to the serving cell."""
    if label == "C4":
        overlapping = min(sites, rng.choice((2, 2, 3)))
        return [rng.uniform(-4, 1) for _ in range(overlapping)]
    if label == "C3":
        return [rng.uniform(7.5, 13)]
    if label == "C6":
        return [rng.uniform(-6.8, -4)]
    return [rng.uniform(-6.8, -4)] if rng.random() < LOOKALIKE_FRACTION else []


def _serving_site(label: str, sectors: int, rng: random.Random) -> list[Cell]:
    distance_m = {"C1": rng.uniform(350, 880), "C2": rng.uniform(1120, 1900)}.get(
        label, rng.uniform(120, 850)
    )
    bearing_deg = rng.uniform(0, 360)  # from the site to the car
    height_m = rng.randint(20, 45)
    beamwidth = rng.choice((6, 6, 12, 25))
    depression = radio.depression_deg(height_m, distance_m)
    if label == "C1":
        tilt = depression + beamwidth / 2 + rng.uniform(4, 11)
    else:
        tilt = depression + rng.uniform(-2.5, beamwidth / 3)
    # In C5 the next sector is adjacent, and the car alternates between the two.
    shared = label == "C5" or rng.random() < LOOKALIKE_FRACTION
    offset = rng.choice((-1, 1)) * (rng.uniform(28, 42) if shared else rng.uniform(0, 30))
    first = _cell(
        0,
        0,
        (
            -distance_m * math.sin(math.radians(bearing_deg)),
            -distance_m * math.cos(math.radians(bearing_deg)),
        ),
        height_m,
        bearing_deg + offset,
        tilt,
        beamwidth,
        rng,
    )
    spacing = 2 * abs(offset) + rng.uniform(0, 6) if shared else rng.uniform(100, 130)
    turn = -math.copysign(1, offset)
    return [
        first,
        *(
            replace(
                first,
                number=n,
                mechanical_azimuth_deg=round(first.azimuth_deg + turn * (spacing + 115 * (n - 1))) % 360,
                digital_azimuth_deg=0,
            )
            for n in range(1, sectors)
        ),
    ]


def _other_site(
    site: int,
    sectors: int,
    target_dbm: float | None,
    highest_dbm: float,
    known: Sequence[Cell],
    rng: random.Random,
) -> tuple[list[Cell], list[float]] | None:
    """Draw a site and the gains of its sectors, or return None if the draw is not plausible.

    The first sector reaches the car with `target_dbm`, unless it is None. The other sectors reach it with at most
    `highest_dbm`.
    """
    for _ in range(_TRIES_PER_SITE):
        distance_m, bearing_deg = rng.uniform(180, 1500), rng.uniform(0, 360)
        x_m, y_m = (
            -distance_m * math.sin(math.radians(bearing_deg)),
            -distance_m * math.cos(math.radians(bearing_deg)),
        )
        if any(cell.distance_m(x_m, y_m) < 200 for cell in known):
            continue
        height_m, beamwidth = rng.randint(20, 45), rng.choice((6, 6, 12, 25))
        tilt = radio.depression_deg(height_m, rng.uniform(150, 600)) + rng.uniform(-1, 3)
        azimuth = bearing_deg + rng.uniform(-60, 60) if target_dbm is not None else rng.uniform(0, 360)
        cells = [
            _cell(
                site, n, (x_m, y_m), height_m, azimuth + 120 * n + rng.uniform(-10, 10), tilt, beamwidth, rng
            )
            for n in range(sectors)
        ]
        gains = []
        for cell in cells:
            dbm = cell.rsrp_dbm(0, 0)
            if target_dbm is not None and cell.number == 0:
                gains.append(target_dbm - dbm)
            else:
                gains.append(min(_shadowing(rng), highest_dbm - dbm - rng.uniform(0, 6)))
        if all(GAIN_RANGE_DB[0] <= gain <= GAIN_RANGE_DB[1] for gain in gains):
            return cells, gains
    return None


def _cell(
    site: int,
    number: int,
    position: tuple[float, float],
    height_m: int,
    azimuth_deg: float,
    tilt_deg: float,
    beamwidth_deg: int,
    rng: random.Random,
) -> Cell:
    mechanical, digital = _split_tilt(max(0, round(tilt_deg)), rng)
    turned = rng.choice((0, 0, 0, -10, -5, 5, 10))
    txrx_mode, antenna = rng.choice(_HARDWARE)
    return Cell(
        gnodeb=site,
        number=number,
        x_m=position[0],
        y_m=position[1],
        height_m=height_m,
        mechanical_azimuth_deg=round(azimuth_deg - turned) % 360,
        digital_azimuth_deg=turned,
        mechanical_tilt_deg=mechanical,
        digital_tilt=digital,
        beam_scenario=rng.choice(_SCENARIOS[beamwidth_deg]),
        pci=0,
        txrx_mode=txrx_mode,
        power_dbm=rng.choice((47.8, 48.8, 49.8)),
        antenna=antenna,
    )


def _split_tilt(tilt_deg: int, rng: random.Random) -> tuple[int, int]:
    """Divide a tilt into a mechanical and a digital part. The default digital part has a special value in the table."""
    digital = min(tilt_deg, DEFAULT_DIGITAL_TILT_DEG if rng.random() < 0.5 else rng.randint(0, 12))
    if digital == DEFAULT_DIGITAL_TILT_DEG and rng.random() < 0.8:
        return tilt_deg - digital, DEFAULT_DIGITAL_TILT
    return tilt_deg - digital, digital


def _shadowing(rng: random.Random) -> float:
    return min(max(rng.gauss(0, SHADOWING_DB), -10.0), 10.0)


# --- identifiers of the cells: PCIs, and numbers within their site


def _draw_colliding(
    label: str, strong: Sequence[int], weak: Sequence[int], rng: random.Random
) -> frozenset[int]:
    """Draw the cells with the serving cell's PCI modulo 30: a strong one in C6, and sometimes a harmless weak one."""
    lookalike = [rng.choice(weak)] if weak and rng.random() < LOOKALIKE_FRACTION else []
    return frozenset([*(strong[:1] if label == "C6" else []), *lookalike])


def _with_pcis(
    cells: Sequence[Cell], colliding: frozenset[int], largest_pci: int, rng: random.Random
) -> list[Cell]:
    """Give the cells different PCIs. Only the cells in `colliding` collide with the sectors of the serving site."""
    own_site = cells[0].gnodeb
    free = set(range(largest_pci + 1))
    own: set[int] = set()  # the remainders of the serving site
    pcis: list[int] = []
    for j, cell in enumerate(cells):
        wanted = {pcis[0] % PCI_MODULUS} if j in colliding else set(range(PCI_MODULUS)) - own
        while (pci := rng.randint(0, largest_pci)) not in free or pci % PCI_MODULUS not in wanted:
            pass
        pcis.append(pci)
        free.remove(pci)
        if cell.gnodeb == own_site:
            own.add(pci % PCI_MODULUS)
    return [replace(cell, pci=pci) for cell, pci in zip(cells, pcis, strict=True)]


def _numbered(cells: Sequence[Cell], rng: random.Random) -> list[Cell]:
    """Shuffle the numbers within each site, so that they do not reveal the serving cell."""
    numbers = {site: rng.sample(range(3), 3) for site in {cell.gnodeb: None for cell in cells}}
    return [replace(cell, number=numbers[cell.gnodeb][cell.number]) for cell in cells]
