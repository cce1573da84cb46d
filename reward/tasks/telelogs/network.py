"""The cells around a road, as the engineering table lists them, and what reaches a car. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reward.tasks.telelogs import radio
from reward.tasks.telelogs.causes import PCI_MODULUS, digital_tilt_deg, vertical_beamwidth_deg


@dataclass(frozen=True, slots=True)
class Cell:
    """One sector. Positions are metres east and north of the middle of the road section that matters."""

    gnodeb: int
    number: int
    """Within its site."""
    x_m: float
    y_m: float
    height_m: int
    mechanical_azimuth_deg: int
    digital_azimuth_deg: int
    mechanical_tilt_deg: int
    digital_tilt: int
    """As in the table: 255 stands for 6 degrees."""
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
        """On the ground."""
        return math.hypot(x_m - self.x_m, y_m - self.y_m)

    def lobe_excess_deg(self, x_m: float, y_m: float) -> float:
        """By how much a car is above the upper half-power edge of the main lobe; negative inside and below it."""
        depression = radio.depression_deg(self.height_m, self.distance_m(x_m, y_m))
        return self.tilt_deg - self.beamwidth_deg / 2 - depression

    def rsrp_dbm(self, x_m: float, y_m: float) -> float:
        """Signal strength from distance and antenna alone, without what buildings add or take."""
        ground_m = self.distance_m(x_m, y_m)
        bearing_deg = math.degrees(math.atan2(x_m - self.x_m, y_m - self.y_m))
        depression = radio.depression_deg(self.height_m, ground_m)
        # The two planes add up, and no direction is weaker than 30 dB below the beam (TR 38.901, table 7.3-1).
        attenuation = radio.horizontal_attenuation_db(bearing_deg - self.azimuth_deg)
        attenuation += radio.vertical_attenuation_db(depression, self.tilt_deg, self.beamwidth_deg)
        loss = radio.path_loss_db(math.hypot(ground_m, self.height_m - radio.UE_HEIGHT_M))
        return radio.reference_power_dbm(self.power_dbm) - min(attenuation, 30.0) - loss


def coupling(serving: Cell, other: Cell) -> float:
    """The share of `other`'s power that disturbs who is served by `serving`."""
    if (serving.pci - other.pci) % PCI_MODULUS == 0:
        return radio.COLLIDING_COUPLING
    return radio.COLOCATED_COUPLING if other.gnodeb == serving.gnodeb else radio.COUPLING
