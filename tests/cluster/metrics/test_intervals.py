"""Confidence intervals hold the truth as often as they say, whatever the prompts are like."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.metrics.intervals import interval

ESTIMATES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=2, max_size=30)


@given(ESTIMATES)
def test_it_is_around_the_mean_and_within_what_a_share_can_be(estimates: list[float]) -> None:
    found = interval(estimates, 4 * len(estimates))
    assert found is not None
    low, high = found
    assert 0 <= low <= sum(estimates) / len(estimates) <= high <= 1
    assert low < high, "nobody is ever sure"


@given(ESTIMATES)
def test_what_is_turned_around_has_the_interval_turned_around(estimates: list[float]) -> None:
    there = interval(estimates, 4 * len(estimates))
    back = interval([1 - estimate for estimate in estimates], 4 * len(estimates))
    assert there is not None
    assert back == pytest.approx((1 - there[1], 1 - there[0]))


def test_more_prompts_make_it_narrower_and_one_says_nothing() -> None:
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
def test_it_holds_the_truth_in_about_95_of_100_evaluations(
    prompts: int, responses: int, a: float, b: float
) -> None:
    """Prompts with a probability drawn from Beta(a, b) each, and so many responses to each. 1,000 evaluations; a
    standard deviation of such a count is 0.7 %."""
    rng = np.random.default_rng([prompts, responses, int(10 * a)])
    truth = a / (a + b)
    held = 0
    for _ in range(1000):
        right = rng.binomial(responses, rng.beta(a, b, prompts))
        low, high = interval((right / responses).tolist(), prompts * responses) or (0, 0)
        held += low <= truth <= high
    assert held > 925
