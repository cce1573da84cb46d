"""pass@k against its definition: how many choices of k responses have a correct one among them."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.metrics.pass_at_k import mean_pass_at_k, pass_at_k, powers_of_two
from tests.builders import make_group

COUNTS = st.integers(1, 300).flatmap(lambda valid: st.tuples(st.just(valid), st.integers(0, valid)))


@pytest.mark.parametrize("valid", range(1, 9))
def test_it_is_the_share_of_choices_with_a_right_response(valid: int) -> None:
    for correct in range(valid + 1):
        responses = [True] * correct + [False] * (valid - correct)
        for k in range(1, valid + 1):
            passed = [any(chosen) for chosen in combinations(responses, k)]
            assert pass_at_k(valid, correct, k) == pytest.approx(sum(passed) / len(passed), abs=1e-15)


@given(COUNTS)
def test_pass_at_1_is_the_mean(counts: tuple[int, int]) -> None:
    valid, correct = counts
    assert pass_at_k(valid, correct, 1) == correct / valid


@given(COUNTS)
def test_more_tries_and_more_right_responses_pass_more_often(counts: tuple[int, int]) -> None:
    valid, correct = counts
    by_k = [pass_at_k(valid, correct, k) for k in range(1, valid + 1)]
    assert by_k == sorted(by_k)
    assert by_k[-1] == (correct > 0)
    assert all(0 <= value <= 1 for value in by_k)
    if correct:
        assert all(pass_at_k(valid, correct - 1, k) <= value for k, value in enumerate(by_k, start=1))


@pytest.mark.parametrize(
    ("valid", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0), (0, 0, 1), (0, 0, 0)]
)
def test_what_cannot_be_estimated_is_refused(valid: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} cannot be estimated from {valid}"):
        pass_at_k(valid, correct, k)


@pytest.mark.parametrize(
    ("largest", "ks"), [(1, [1]), (2, [1, 2]), (3, [1, 2]), (4, [1, 2, 4]), (16, [1, 2, 4, 8, 16])]
)
def test_powers_of_two_up_to_the_number_of_responses(largest: int, ks: list[int]) -> None:
    assert powers_of_two(largest) == ks


def test_a_failed_verdict_is_neither_right_nor_wrong() -> None:
    """One of two, and two of three: the failed ones are not among them. Of the second prompt alone pass@3 is known."""
    groups = [make_group([1.0, 0.0, None, None]), make_group([1.0, 1.0, 0.0, None])]
    assert mean_pass_at_k(groups, 1) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert mean_pass_at_k(groups, 3) == 1
    assert math.isnan(mean_pass_at_k(groups, 4))
