"""The radio physics of a drive test: from positions and antennas to signal strength, SINR and throughput. Pure.

Path loss and antenna patterns follow 3GPP (TR 38.901 V17, TR 36.814 V9). Assumptions of this project are marked *ours*.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

CARRIER_GHZ = 3.5
RESOURCE_BLOCKS = 273
"""The number of resource blocks in 100 MHz with 30 kHz subcarriers (TS 38.101-1, table 5.3.2-1)."""
UE_HEIGHT_M = 1.5
BEAM_GAIN_DBI = 25.0
"""The gain of the synchronization beam of a 64-element array (ours)."""
BACKGROUND_DBM = -112.0
"""The noise and the interference of unlisted distant cells, per resource element (ours)."""
COUPLING = 0.05
"""The fraction of a co-frequency neighbour's power that interferes: its load times the leakage of the beams (ours)."""
COLOCATED_COUPLING = 0.01
"""The fraction for a sector of the same site, which is scheduled together with the serving sector (ours)."""
COLLIDING_COUPLING = 0.6
"""The fraction for a neighbour with the same reference signal sequences: equal PCI modulo 30 (ours)."""
CSI_AGE_S = 1.3e-3
"""The age of the channel state information that precodes a transmission (ours)."""
RECOVERY_AFTER_HANDOVER = 0.4
"""The fraction of the rate after a handover. It doubles every second until the rate is restored (ours)."""

_SUBCARRIERS_DB = 10 * math.log10(RESOURCE_BLOCKS * 12)
_SYMBOLS_PER_S = 14 * 2000  # of each subcarrier
_DOWNLINK_FRACTION = 0.72  # of the symbols: four slots of five, less control and reference signals
_SPEED_OF_LIGHT_M_S = 299_792_458.0


def path_loss_db(distance_m: float) -> float:
    """Return 32.4 + 20 log10(f/GHz) + 30 log10(d/m), for urban macro cells without line of sight.

    This is the optional model of TR 38.901, table 7.4.1-1. `distance_m` is the three-dimensional distance, which
    includes the antenna height.
    """
    return 32.4 + 20 * math.log10(CARRIER_GHZ) + 30 * math.log10(max(distance_m, 10.0))


def horizontal_attenuation_db(offset_deg: float) -> float:
    """Return min(12 (φ/65°)², 30) for an angle φ off the azimuth (TR 38.901, table 7.3-1)."""
    offset = (offset_deg + 180) % 360 - 180
    return min(12 * (offset / 65) ** 2, 30.0)


def vertical_attenuation_db(depression_deg: float, tilt_deg: float, beamwidth_deg: float) -> float:
    """Return min(12 ((θ − θ_tilt)/θ_3dB)², 20) (TR 36.814, table A.2.1.1-2). Both angles are below the horizon."""
    return min(12 * ((depression_deg - tilt_deg) / beamwidth_deg) ** 2, 20.0)


def depression_deg(height_m: float, distance_m: float) -> float:
    """Return the angle below the horizon at which an antenna sees the car, `distance_m` away on the ground."""
    return math.degrees(math.atan2(height_m - UE_HEIGHT_M, distance_m))


def reference_power_dbm(power_dbm: float) -> float:
    """Return a cell's power on one resource element, in the direction of the beam."""
    return power_dbm - _SUBCARRIERS_DB + BEAM_GAIN_DBI


def sinr_db(serving_dbm: float, interferers: Iterable[tuple[float, float]]) -> float:
    """Return the ratio of signal to interference and noise. `interferers` are pairs of RSRP in dBm and coupling."""
    interference_mw = 10 ** (BACKGROUND_DBM / 10)
    interference_mw += sum(coupling * 10 ** (rsrp_dbm / 10) for rsrp_dbm, coupling in interferers)
    return serving_dbm - 10 * math.log10(interference_mw)


def throughput_mbps(rbs: float, sinr: float, speed_kmh: float, recovery: float = 1.0) -> float:
    """Return resource elements per second × bits per element, over up to four layers.

    A layer carries 0.75 log2(1 + SINR) bits, but at most 7.4, the efficiency of 256-QAM. The number of layers rises
    with the SINR (ours). Channel state information of age τ leaves a fraction J0(2π f_D τ)² of the rate, where f_D is
    the Doppler shift (Clarke's model). `recovery` is the fraction of the rate that the latest handovers left.
    """
    efficiency = min(0.75 * math.log2(1 + 10 ** (sinr / 10)), 7.4)
    layers = 1 + 3 / (1 + math.exp((12 - sinr) / 3))
    elements_per_s = rbs * 12 * _SYMBOLS_PER_S * _DOWNLINK_FRACTION
    return elements_per_s * efficiency * layers * channel_knowledge(speed_kmh) * recovery / 1e6


def channel_knowledge(speed_kmh: float) -> float:
    """Return J0(2π f_D τ)², but at least 0.1: one layer works without channel state information (ours)."""
    doppler_hz = speed_kmh / 3.6 * CARRIER_GHZ * 1e9 / _SPEED_OF_LIGHT_M_S
    quarter = (math.pi * doppler_hz * CSI_AGE_S) ** 2  # (x/2)², x = 2π f_D τ
    # The power series of J0, which is exact to 1e-3 up to its first zero; beyond it the minimum of 0.1 applies.
    j0 = 1 - quarter + quarter**2 / 4 - quarter**3 / 36 + quarter**4 / 576 if quarter < 1.44 else 0.0
    return max(j0**2, 0.1)
