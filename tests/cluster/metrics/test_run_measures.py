"""Measures of a run: the area under a curve, and the mean over its end."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.metrics.run_measures import Row, late_mean, mean_over_course

numbers = st.floats(-1e3, 1e3)


def rows(*points: tuple[int, float]) -> list[Row]:
    return [{"step": step, "x": value} for step, value in points]


def test_the_mean_of_a_straight_line_is_its_middle() -> None:
    assert mean_over_course(rows((0, 1.0), (10, 3.0)), "x") == 2.0
    assert mean_over_course(rows((3, 7.0)), "x") == 7.0
    assert math.isnan(mean_over_course([], "x"))


@given(
    st.lists(st.tuples(st.integers(1, 9), numbers), min_size=2, max_size=6),
    st.integers(0, 4),
    st.floats(0, 1),
)
def test_a_further_point_on_the_line_does_not_change_the_area(
    gaps: list[tuple[int, float]], index: int, fraction: float
) -> None:
    step, points = 0, []
    for gap, value in gaps:
        points.append((float(step), value))
        step += gap
    (a, left), (b, right) = points[index % (len(points) - 1) :][:2]
    between = (a + fraction * (b - a), left + fraction * (right - left))
    more = sorted([*points, between])
    as_rows = [[{"step": s, "x": v} for s, v in known] for known in (points, more)]
    assert mean_over_course(as_rows[1], "x") == pytest.approx(mean_over_course(as_rows[0], "x"), abs=1e-6)


def test_gaps_are_bridged_and_the_late_mean_is_that_of_the_last_tenth() -> None:
    holes = [*rows((0, 1.0), (1, math.nan), (2, 3.0)), {"step": 3}]
    assert mean_over_course(holes, "x") == 2.0
    assert late_mean(rows(*((step, float(step)) for step in range(1, 21))), "x") == 19.5
    assert late_mean(rows((1, 4.0), (2, math.nan)), "x") == 4.0
