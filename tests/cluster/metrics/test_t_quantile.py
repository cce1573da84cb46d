"""What differences over seeds are worth: the t-interval, and pairing."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.metrics.run_measures import Row, late_mean, mean_over_course
from cluster.metrics.t_quantile import mean_estimate, paired_difference, t_quantile

numbers = st.floats(-1e3, 1e3)


# Two-sided 95 %, as in any table of Student's t.
@pytest.mark.parametrize(
    ("degrees", "value"),
    [
        (1, 12.7062047364),
        (2, 4.3026527299),
        (3, 3.1824463053),
        (4, 2.7764451052),
        (5, 2.5705818366),
        (9, 2.2621571629),
        (30, 2.0422724563),
        (101, 1.9837310034),
    ],
)
def test_the_quantile_is_that_of_the_tables(degrees: int, value: float) -> None:
    assert t_quantile(degrees) == pytest.approx(value, rel=1e-9)


def test_with_many_degrees_of_freedom_it_is_the_normal_distribution_s() -> None:
    assert t_quantile(100_000) == pytest.approx(1.959964, rel=1e-4)


def test_an_interval_by_hand() -> None:
    estimate = mean_estimate([1.0, 2.0, 3.0])
    assert estimate.mean == 2
    assert estimate.half_width == pytest.approx(4.3026527299 / math.sqrt(3))
    assert not estimate.excludes_zero


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    assert mean_estimate([0.5]).half_width is None
    assert not mean_estimate([0.5]).excludes_zero
    assert math.isnan(mean_estimate([]).mean)


def test_19_of_20_intervals_hold_the_true_mean() -> None:
    draw = random.Random(0)
    held = sum(
        abs(estimate.mean - 5) <= estimate.half_width
        for _ in range(4000)
        if (estimate := mean_estimate([draw.gauss(5, 2) for _ in range(3)])).half_width is not None
    )
    assert 0.94 < held / 4000 < 0.96


@given(st.dictionaries(st.integers(0, 9), st.tuples(numbers, numbers), min_size=2), st.data())
def test_what_a_seed_brings_to_both_does_not_count(
    pairs: dict[int, tuple[float, float]], data: st.DataObject
) -> None:
    shift = {seed: data.draw(numbers) for seed in pairs}
    plain = paired_difference({s: a for s, (a, _) in pairs.items()}, {s: b for s, (_, b) in pairs.items()})
    shifted = paired_difference(
        {s: a + shift[s] for s, (a, _) in pairs.items()}, {s: b + shift[s] for s, (_, b) in pairs.items()}
    )
    assert shifted.mean == pytest.approx(plain.mean, abs=1e-9)
    assert shifted.half_width == pytest.approx(plain.half_width, abs=1e-8)


def test_seeds_that_one_lacks_are_left_out() -> None:
    difference = paired_difference({0: 3.0, 1: 4.0, 7: 100.0}, {0: 1.0, 1: 2.0, 2: -100.0})
    assert (difference.mean, difference.half_width, difference.count) == (2.0, 0.0, 2)


def rows(*points: tuple[int, float]) -> list[Row]:
    return [{"step": step, "x": value} for step, value in points]


def test_the_area_under_a_straight_line_is_its_middle() -> None:
    assert mean_over_course(rows((0, 1.0), (10, 3.0)), "x") == 2.0
    assert mean_over_course(rows((3, 7.0)), "x") == 7.0
    assert math.isnan(mean_over_course([], "x"))


@given(
    st.lists(st.tuples(st.integers(1, 9), numbers), min_size=2, max_size=6),
    st.integers(0, 4),
    st.floats(0, 1),
)
def test_a_point_on_the_line_adds_nothing_to_the_area(
    gaps: list[tuple[int, float]], place: int, share: float
) -> None:
    step, points = 0, []
    for gap, value in gaps:
        points.append((float(step), value))
        step += gap
    (a, left), (b, right) = points[place % (len(points) - 1) :][:2]
    between = (a + share * (b - a), left + share * (right - left))
    more = sorted([*points, between])
    as_rows = [[{"step": s, "x": v} for s, v in known] for known in (points, more)]
    assert mean_over_course(as_rows[1], "x") == pytest.approx(mean_over_course(as_rows[0], "x"), abs=1e-6)


def test_a_gap_is_bridged_and_the_last_tenth_is_the_end() -> None:
    holes = [*rows((0, 1.0), (1, math.nan), (2, 3.0)), {"step": 3}]
    assert mean_over_course(holes, "x") == 2.0
    assert late_mean(rows(*((step, float(step)) for step in range(1, 21))), "x") == 19.5
    assert late_mean(rows((1, 4.0), (2, math.nan)), "x") == 4.0
