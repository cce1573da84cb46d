"""The radio physics of a drive test: from positions and antennas to signal strength, SINR and throughput. Pure.

Path loss and antenna patterns are 3GPP's (TR 38.901 V17, TR 36.814 V9); what is ours is said where it stands.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

CARRIER_GHZ = 3.5
RESOURCE_BLOCKS = 273
"""Of 100 MHz with 30 kHz subcarriers (TS 38.101-1, table 5.3.2-1)."""
UE_HEIGHT_M = 1.5
BEAM_GAIN_DBI = 25.0
"""Of a 64-element array's synchronisation beam (ours)."""
BACKGROUND_DBM = -112.0
"""Noise and the interference of cells too far away to be listed, per resource element (ours)."""
COUPLING = 0.05
"""Fraction of a co-frequency neighbour's power that disturbs: its load times what the beams let through (ours)."""
COLOCATED_COUPLING = 0.01
"""The same for a sector of the same site, which is scheduled together with the serving one (ours)."""
COLLIDING_COUPLING = 0.6
"""The same for a neighbour whose reference signals use the same sequences: equal PCI modulo 30 (ours)."""
CSI_AGE_S = 1.3e-3
"""How old the channel knowledge is that a transmission is precoded with (ours)."""
RECOVERY_AFTER_HANDOVER = 0.4
"""What a handover leaves of the rate, which then doubles every second until it is whole again (ours)."""

_REFERENCE_SHARE_DB = 10 * math.log10(RESOURCE_BLOCKS * 12)
_SYMBOLS_PER_S = 14 * 2000  # of each subcarrier
_DOWNLINK_SHARE = 0.72  # of the symbols: four slots of five, less control and reference signals
_SPEED_OF_LIGHT_M_S = 299_792_458.0


def path_loss_db(distance_m: float) -> float:
    """Urban macro, no line of sight: 32.4 + 20 log10(f/GHz) + 30 log10(d/m) (TR 38.901, table 7.4.1-1, optional).
    `distance_m` is the length of the way through the air, antenna height included."""
    return 32.4 + 20 * math.log10(CARRIER_GHZ) + 30 * math.log10(max(distance_m, 10.0))


def horizontal_attenuation_db(offset_deg: float) -> float:
    """min(12 (φ/65°)², 30) for an angle φ off the azimuth (TR 38.901, table 7.3-1)."""
    offset = (offset_deg + 180) % 360 - 180
    return min(12 * (offset / 65) ** 2, 30.0)


def vertical_attenuation_db(depression_deg: float, tilt_deg: float, beamwidth_deg: float) -> float:
    """min(12 ((θ − θ_tilt)/θ_3dB)², 20) (TR 36.814, table A.2.1.1-2). Both angles are below the horizon."""
    return min(12 * ((depression_deg - tilt_deg) / beamwidth_deg) ** 2, 20.0)


def depression_deg(height_m: float, distance_m: float) -> float:
    """The angle below the horizon under which an antenna sees the car, `distance_m` away on the ground."""
    return math.degrees(math.atan2(height_m - UE_HEIGHT_M, distance_m))


def reference_power_dbm(power_dbm: float) -> float:
    """What of a cell's power is on one resource element, in the direction of the beam."""
    return power_dbm - _REFERENCE_SHARE_DB + BEAM_GAIN_DBI


def sinr_db(serving_dbm: float, disturbers: Iterable[tuple[float, float]]) -> float:
    """Signal to interference and noise. `disturbers` are pairs of RSRP in dBm and coupling."""
    disturbance_mw = 10 ** (BACKGROUND_DBM / 10)
    disturbance_mw += sum(coupling * 10 ** (rsrp_dbm / 10) for rsrp_dbm, coupling in disturbers)
    return serving_dbm - 10 * math.log10(disturbance_mw)


def throughput_mbps(rbs: float, sinr: float, speed_kmh: float, recovery: float = 1.0) -> float:
    """Resource elements per second × bits on each, over up to four layers.

    A layer carries 0.75 log2(1 + SINR), at most 7.4 bits, the efficiency of 256-QAM; the number of layers rises with
    the SINR (ours). Channel knowledge that is τ old is worth J0(2π f_D τ)² of the rate, f_D the Doppler shift (Clarke's
    model). `recovery` is what the latest handovers left of the rate.
    """
    efficiency = min(0.75 * math.log2(1 + 10 ** (sinr / 10)), 7.4)
    layers = 1 + 3 / (1 + math.exp((12 - sinr) / 3))
    elements_per_s = rbs * 12 * _SYMBOLS_PER_S * _DOWNLINK_SHARE
    return elements_per_s * efficiency * layers * channel_knowledge(speed_kmh) * recovery / 1e6


def channel_knowledge(speed_kmh: float) -> float:
    """J0(2π f_D τ)², but never less than a tenth: without channel knowledge there is still one layer (ours)."""
    doppler_hz = speed_kmh / 3.6 * CARRIER_GHZ * 1e9 / _SPEED_OF_LIGHT_M_S
    quarter = (math.pi * doppler_hz * CSI_AGE_S) ** 2  # (x/2)², x = 2π f_D τ
    # J0 as its power series, which is exact to 1e-3 up to its first zero; beyond, the floor holds anyway.
    j0 = 1 - quarter + quarter**2 / 4 - quarter**3 / 36 + quarter**4 / 576 if quarter < 1.44 else 0.0
    return max(j0**2, 0.1)
