"""The physics of the drives: laws of the formulas, and of what follows from them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.tasks.telelogs import radio
from reward.tasks.telelogs.causes import digital_tilt_deg, vertical_beamwidth_deg
from reward.tasks.telelogs.drive import Cell

CELL = Cell(0, 0, 0.0, 0.0, 30, 0, 0, 3, 0, "DEFAULT", 1, "64T64R", 48.8, "antenna")


@given(st.floats(20, 2000))
def test_ten_times_as_far_is_30_db_weaker(distance_m: float) -> None:
    assert radio.path_loss_db(10 * distance_m) - radio.path_loss_db(distance_m) == pytest.approx(30)


def test_the_path_loss_of_the_standard_at_one_place() -> None:
    """32.4 + 20 log10 3.5 + 30 log10 500."""
    assert radio.path_loss_db(500) == pytest.approx(32.4 + 10.881 + 80.969, abs=1e-3)


@given(st.floats(-720, 720))
def test_an_antenna_is_even_periodic_and_bounded(offset_deg: float) -> None:
    attenuation = radio.horizontal_attenuation_db(offset_deg)
    assert 0 <= attenuation <= 30
    assert radio.horizontal_attenuation_db(-offset_deg) == pytest.approx(attenuation, abs=1e-6)
    assert radio.horizontal_attenuation_db(offset_deg + 360) == pytest.approx(attenuation, abs=1e-6)


@pytest.mark.parametrize("beamwidth", [6, 12, 25])
def test_half_the_beamwidth_off_the_tilt_is_half_the_power(beamwidth: int) -> None:
    assert radio.vertical_attenuation_db(8 + beamwidth / 2, 8, beamwidth) == pytest.approx(3)
    assert radio.horizontal_attenuation_db(65 / 2) == pytest.approx(3)
    assert radio.vertical_attenuation_db(89, 0, beamwidth) == 20


def test_a_car_in_the_beam_hears_more_than_one_beside_below_or_above_it() -> None:
    """3 degrees below the horizon, 30 m high: the beam meets the ground 540 m north."""
    in_beam = CELL.rsrp_dbm(0, 540)
    assert in_beam > CELL.rsrp_dbm(540, 0) + 15
    assert in_beam > CELL.rsrp_dbm(0, -540) + 25
    assert in_beam > CELL.rsrp_dbm(0, 1500)
    assert CELL.lobe_excess_deg(0, 540) == pytest.approx(-3, abs=0.1)
    assert CELL.lobe_excess_deg(0, 1e9) == pytest.approx(0, abs=1e-3)


def test_sinr_without_disturbers_is_the_distance_to_the_background() -> None:
    assert radio.sinr_db(-90, []) == pytest.approx(22)
    assert radio.sinr_db(-90, [(-90, 1.0)]) == pytest.approx(0, abs=0.1)


@given(st.floats(50, 270), st.floats(-10, 30), st.floats(0, 120), st.floats(0.1, 0.9))
def test_throughput_rises_with_blocks_sinr_and_recovery_and_falls_with_speed(
    rbs: float, sinr: float, speed_kmh: float, recovery: float
) -> None:
    here = radio.throughput_mbps(rbs, sinr, speed_kmh, recovery)
    assert radio.throughput_mbps(2 * rbs, sinr, speed_kmh, recovery) == pytest.approx(2 * here)
    assert radio.throughput_mbps(rbs, sinr + 1, speed_kmh, recovery) > here > 0
    assert radio.throughput_mbps(rbs, sinr, speed_kmh, 1.0) > here
    assert radio.throughput_mbps(rbs, sinr, speed_kmh + 5, recovery) <= here


def test_the_value_of_channel_knowledge_is_a_squared_bessel_function() -> None:
    """J0(1.2) = 0.6711, J0(2.0) = 0.2239 (Abramowitz and Stegun, table 9.1); at rest it is whole."""
    for x, j0 in ((1.2, 0.6711), (2.0, 0.2239)):
        doppler_hz = x / (2 * math.pi * radio.CSI_AGE_S)
        speed_kmh = doppler_hz * 299_792_458 / (radio.CARRIER_GHZ * 1e9) * 3.6
        assert radio.channel_knowledge(speed_kmh) == pytest.approx(max(j0**2, 0.1), abs=1e-3)
    assert radio.channel_knowledge(0) == 1
    assert radio.channel_knowledge(300) == 0.1


@pytest.mark.parametrize(("code", "degrees"), [(255, 6), (6, 6), (0, 0), (12, 12)])
def test_a_digital_tilt_of_255_is_6_degrees(code: int, degrees: int) -> None:
    assert digital_tilt_deg(code) == degrees


@pytest.mark.parametrize(
    ("scenario", "degrees"),
    [
        ("DEFAULT", 6),
        ("Default", 6),
        ("SCENARIO_5", 6),
        ("SCENARIO_6", 12),
        ("SCENARIO_11", 12),
        ("SCENARIO_12", 25),
    ],
)
def test_the_beam_scenario_decides_the_vertical_beamwidth(scenario: str, degrees: int) -> None:
    assert vertical_beamwidth_deg(scenario) == degrees


@pytest.mark.parametrize("scenario", ["", "SCENARIO", "SCENARIO_", "SCENARIO_x", "BEAM_3", "SCENARIO_٣"])
def test_what_is_no_beam_scenario_is_refused(scenario: str) -> None:
    with pytest.raises(ValueError, match="is not a beam scenario"):
        vertical_beamwidth_deg(scenario)
