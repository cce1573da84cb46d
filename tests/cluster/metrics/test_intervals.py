"""Confidence intervals contain the true value as often as they claim, over prompts and over seeds."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.metrics.intervals import interval, mean_estimate, paired_difference, t_quantile

ESTIMATES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=2, max_size=30)


@given(ESTIMATES)
def test_it_contains_the_mean_and_stays_within_0_and_1(estimates: list[float]) -> None:
    found = interval(estimates, 4 * len(estimates))
    assert found is not None
    low, high = found
    assert 0 <= low <= sum(estimates) / len(estimates) <= high <= 1
    assert low < high, "an interval always has a width"


@given(ESTIMATES)
def test_mirrored_estimates_have_the_mirrored_interval(estimates: list[float]) -> None:
    there = interval(estimates, 4 * len(estimates))
    back = interval([1 - estimate for estimate in estimates], 4 * len(estimates))
    assert there is not None
    assert back == pytest.approx((1 - there[1], 1 - there[0]))


def test_more_prompts_make_it_narrower_and_one_prompt_has_none() -> None:
    widths = [
        high - low for n in (4, 16, 64, 256) for low, high in [interval([0.0, 1.0] * n, 2 * n) or (0, 1)]
    ]
    assert widths == sorted(widths, reverse=True)
    assert interval([0.5], 16) is None
    assert interval([], 0) is None


@pytest.mark.parametrize("prompts", [20, 128])
@pytest.mark.parametrize("responses", [1, 4, 16])
@pytest.mark.parametrize(
    ("a", "b"), [(1, 1), (0.3, 0.3), (0.5, 9.5), (20, 20)], ids=["any", "easy or hard", "sparse", "alike"]
)
def test_it_contains_the_true_value_in_about_95_of_100_evaluations(
    prompts: int, responses: int, a: float, b: float
) -> None:
    """The probability of each prompt is drawn from Beta(a, b). With 1,000 evaluations the standard deviation of the
    count is 0.7 %."""
    rng = np.random.default_rng([prompts, responses, int(10 * a)])
    true_mean = a / (a + b)
    contained = 0
    for _ in range(1000):
        correct = rng.binomial(responses, rng.beta(a, b, prompts))
        low, high = interval((correct / responses).tolist(), prompts * responses) or (0, 0)
        contained += low <= true_mean <= high
    assert contained > 925


NUMBERS = st.floats(-1e3, 1e3)


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
def test_quantiles_equal_those_of_the_tables(degrees: int, value: float) -> None:
    assert t_quantile(degrees) == pytest.approx(value, rel=1e-9)


def test_with_many_degrees_of_freedom_the_quantile_is_that_of_the_normal_distribution() -> None:
    assert t_quantile(100_000) == pytest.approx(1.959964, rel=1e-4)


def test_an_interval_computed_by_hand() -> None:
    estimate = mean_estimate([1.0, 2.0, 3.0])
    assert estimate.mean == 2
    assert estimate.half_width == pytest.approx(4.3026527299 / math.sqrt(3))
    assert not estimate.excludes_zero


def test_one_seed_has_no_interval_and_no_seed_has_no_mean() -> None:
    assert mean_estimate([0.5]).half_width is None
    assert not mean_estimate([0.5]).excludes_zero
    assert math.isnan(mean_estimate([]).mean)


def test_19_of_20_intervals_contain_the_true_mean() -> None:
    draw = random.Random(0)
    held = sum(
        abs(estimate.mean - 5) <= estimate.half_width
        for _ in range(4000)
        if (estimate := mean_estimate([draw.gauss(5, 2) for _ in range(3)])).half_width is not None
    )
    assert 0.94 < held / 4000 < 0.96


@given(st.dictionaries(st.integers(0, 9), st.tuples(NUMBERS, NUMBERS), min_size=2), st.data())
def test_an_effect_of_a_seed_on_both_runs_cancels_out(
    pairs: dict[int, tuple[float, float]], data: st.DataObject
) -> None:
    shift = {seed: data.draw(NUMBERS) for seed in pairs}
    plain = paired_difference({s: a for s, (a, _) in pairs.items()}, {s: b for s, (_, b) in pairs.items()})
    shifted = paired_difference(
        {s: a + shift[s] for s, (a, _) in pairs.items()}, {s: b + shift[s] for s, (_, b) in pairs.items()}
    )
    assert shifted.mean == pytest.approx(plain.mean, abs=1e-9)
    assert shifted.half_width == pytest.approx(plain.half_width, abs=1e-8)


def test_seeds_that_only_one_has_are_left_out() -> None:
    difference = paired_difference({0: 3.0, 1: 4.0, 7: 100.0}, {0: 1.0, 1: 2.0, 2: -100.0})
    assert (difference.mean, difference.half_width, difference.count) == (2.0, 0.0, 2)
