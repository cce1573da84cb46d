"""The cells around a road, a drive past them, and the table of the test phone. Pure: nothing is random here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reward.tasks.telelogs import radio
from reward.tasks.telelogs.causes import PCI_MODULUS, digital_tilt_deg, vertical_beamwidth_deg

WEAKEST_LISTED_DBM = -130.0
"""The phone does not find weaker neighbours (ours)."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One sector, as the engineering table lists it.

    Positions are meters east and north of the middle of the section with the low throughput.
    """

    gnodeb: int
    number: int
    """The number within its site."""
    x_m: float
    y_m: float
    height_m: int
    mechanical_azimuth_deg: int
    digital_azimuth_deg: int
    mechanical_tilt_deg: int
    digital_tilt: int
    """The value in the table, where 255 stands for 6 degrees."""
    beam_scenario: str
    pci: int
    txrx_mode: str
    power_dbm: float
    antenna: str

    @property
    def azimuth_deg(self) -> int:
        return (self.mechanical_azimuth_deg + self.digital_azimuth_deg) % 360

    @property
    def tilt_deg(self) -> int:
        return self.mechanical_tilt_deg + digital_tilt_deg(self.digital_tilt)

    @property
    def beamwidth_deg(self) -> int:
        return vertical_beamwidth_deg(self.beam_scenario)

    def distance_m(self, x_m: float, y_m: float) -> float:
        """Return the distance on the ground."""
        return math.hypot(x_m - self.x_m, y_m - self.y_m)

    def lobe_excess_deg(self, x_m: float, y_m: float) -> float:
        """Return the angle of a car above the upper half-power edge of the main lobe; negative inside and below it."""
        depression = radio.depression_deg(self.height_m, self.distance_m(x_m, y_m))
        return self.tilt_deg - self.beamwidth_deg / 2 - depression

    def rsrp_dbm(self, x_m: float, y_m: float) -> float:
        """Return the signal strength from distance and antenna alone, without the effect of buildings."""
        ground_m = self.distance_m(x_m, y_m)
        bearing_deg = math.degrees(math.atan2(x_m - self.x_m, y_m - self.y_m))
        depression = radio.depression_deg(self.height_m, ground_m)
        # The attenuations of the two planes add up, to 30 dB at most (TR 38.901, table 7.3-1).
        attenuation = radio.horizontal_attenuation_db(bearing_deg - self.azimuth_deg)
        attenuation += radio.vertical_attenuation_db(depression, self.tilt_deg, self.beamwidth_deg)
        loss = radio.path_loss_db(math.hypot(ground_m, self.height_m - radio.UE_HEIGHT_M))
        return radio.reference_power_dbm(self.power_dbm) - min(attenuation, 30.0) - loss


def coupling(serving: Cell, other: Cell) -> float:
    """Return the fraction of the power of `other` that interferes with a car that `serving` serves."""
    if (serving.pci - other.pci) % PCI_MODULUS == 0:
        return radio.COLLIDING_COUPLING
    return radio.COLOCATED_COUPLING if other.gnodeb == serving.gnodeb else radio.COUPLING


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that decides the measurements. Each row of the table is one second. Cells are indices of `cells`."""

    cells: tuple[Cell, ...]
    track: tuple[tuple[float, float], ...]
    """The position in each row, in meters east and north."""
    speeds_kmh: tuple[float, ...]
    serving: tuple[int, ...]
    """The serving cell in each row."""
    gains_db: tuple[tuple[float, ...], ...]
    """The effect of buildings and fading on RSRP: for each row, a tuple over cells."""
    rbs: tuple[float, ...]
    """The mean number of scheduled resource blocks in each row."""
    noise: tuple[float, ...]
    """The factor on the measured throughput in each row."""
    recovery: float
    """The fraction of the rate that handovers before the first row left."""
    missed: frozenset[tuple[int, int]]
    """The pairs of row and cell that the phone did not list."""
    neighbours: int
    """The number of neighbours that the phone lists."""


@dataclass(frozen=True, slots=True)
class Row:
    """One second of the drive-test table."""

    x_m: float
    y_m: float
    speed_kmh: float
    serving: int
    rsrp_dbm: float
    sinr_db: float
    throughput_mbps: float
    neighbours: tuple[tuple[int, float], ...]
    """Pairs of cell and RSRP in dBm, strongest first; fewer than the phone lists if it found fewer."""
    rbs: float


def drive(scenario: Scenario) -> tuple[Row, ...]:
    """Return the rows that the phone measures."""
    rows = []
    recovery = scenario.recovery / 2
    for i, (x_m, y_m) in enumerate(scenario.track):
        handover = i > 0 and scenario.serving[i] != scenario.serving[i - 1]
        recovery = recovery * radio.RECOVERY_AFTER_HANDOVER if handover else min(1.0, 2 * recovery)
        rows.append(_row(scenario, i, x_m, y_m, recovery))
    return tuple(rows)


def _row(scenario: Scenario, i: int, x_m: float, y_m: float, recovery: float) -> Row:
    levels = [
        cell.rsrp_dbm(x_m, y_m) + gain
        for cell, gain in zip(scenario.cells, scenario.gains_db[i], strict=True)
    ]
    serving = scenario.serving[i]
    cell = scenario.cells[serving]
    others = [j for j in range(len(levels)) if j != serving]
    sinr = radio.sinr_db(levels[serving], [(levels[j], coupling(cell, scenario.cells[j])) for j in others])
    mbps = radio.throughput_mbps(scenario.rbs[i], sinr, scenario.speeds_kmh[i], recovery) * scenario.noise[i]
    found = [j for j in others if levels[j] >= WEAKEST_LISTED_DBM and (i, j) not in scenario.missed]
    strongest = sorted(found, key=lambda j: -levels[j])[: scenario.neighbours]
    return Row(
        x_m=x_m,
        y_m=y_m,
        speed_kmh=scenario.speeds_kmh[i],
        serving=serving,
        rsrp_dbm=levels[serving],
        sinr_db=sinr,
        throughput_mbps=mbps,
        neighbours=tuple((j, levels[j]) for j in strongest),
        rbs=scenario.rbs[i],
    )
