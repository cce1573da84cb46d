"""Measures of a run: the area under a curve, and the mean over its end."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.metrics.run_measures import MEASURES, Row, early_mean, late_mean, mean_of_steps, mean_over_course

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


def test_the_early_mean_is_that_of_the_first_quarter() -> None:
    assert early_mean(rows(*((step, float(step)) for step in range(1, 21))), "x") == 3.0
    assert early_mean(rows((1, math.nan), (2, 4.0), (3, 9.0)), "x") == 4.0
    assert math.isnan(early_mean([], "x"))


def test_the_mean_of_a_sum_is_over_the_steps_that_have_all_parts() -> None:
    parts: list[Row] = [
        {"step": 0, "x": 5.0},
        {"step": 1, "x": 1.0, "y": 2.0},
        {"step": 2, "x": 3.0, "y": 4.0},
    ]
    assert mean_of_steps(parts, "x", "y") == 5.0
    assert mean_of_steps(parts, "x") == 3.0
    assert math.isnan(mean_of_steps(parts, "z"))


@given(st.integers(1, 60), numbers)
def test_every_measure_of_a_constant_run_is_the_constant(steps: int, value: float) -> None:
    """A row of step 0 has only the results of the evaluation. Twice the value is clipped: at both bounds."""
    batch = dict.fromkeys(
        ["reward/mean", "response_length/mean", "objective/alpha", "objective/entropy"]
        + [f"objective/clip_fraction_{side}" for side in ("low", "high")],
        value,
    )
    evaluation = {"eval/pass_at_1": value, "eval/pass_at_k": value}
    run: list[Row] = [{"step": 0, **evaluation}]
    run += [{"step": step, **batch, **evaluation} for step in range(1, steps + 1)]
    for measure in MEASURES:
        factor = 2 if measure.key == "clipped" else 1
        assert measure.of(run) == pytest.approx(factor * value), measure.key
        assert math.isnan(measure.of([])), measure.key


def test_measures_have_keys_and_titles_of_their_own() -> None:
    assert len({measure.key for measure in MEASURES}) == len(MEASURES)
    assert len({measure.title for measure in MEASURES}) == len(MEASURES)
