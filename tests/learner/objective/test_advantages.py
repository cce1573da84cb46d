"""Advantages, sign fractions and the adaptive weight: the laws that the method states about them."""

from __future__ import annotations

import statistics
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from learner.objective.objectives import Scaling, SignFractions, adaptive_alpha, sign_fractions
from learner.objective.training_batch import (
    STD_EPSILON,
    group_advantages,
    hysteretic,
    overlong_penalties,
)

# Hundredths: few of them are exact in floating point, and no two are so close that rounding decides between them.
REWARD = st.sampled_from([0.0, 0.1, 0.5, 1.0]) | st.integers(-200, 200).map(
    lambda hundredths: hundredths / 100
)
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)
SCALING = st.sampled_from(SCALINGS)


@st.composite
def batches(draw: st.DrawFn, failing: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and valid flags, [P, G]."""
    prompts, responses = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    rows: Any = st.lists(REWARD, min_size=responses, max_size=responses)
    rewards = np.array(draw(st.lists(rows, min_size=prompts, max_size=prompts)))
    if not failing:
        return rewards, np.ones(rewards.shape, dtype=bool)
    flags: Any = st.lists(st.booleans(), min_size=responses, max_size=responses)
    return rewards, np.array(draw(st.lists(flags, min_size=prompts, max_size=prompts)))


def binary(right: int, size: int) -> np.ndarray:
    return np.array([[1.0] * right + [0.0] * (size - right)])


def advantages_of(rewards: np.ndarray, scaling: Scaling = "group") -> np.ndarray:
    return group_advantages(rewards, np.ones(rewards.shape, dtype=bool), scaling)


@given(batches(), SCALING)
def test_advantages_sum_to_zero_in_each_group(batch: tuple[np.ndarray, np.ndarray], scaling: Scaling) -> None:
    rewards, valid = batch
    if scaling == "mean":
        rewards = np.abs(rewards)
    assert np.abs(group_advantages(rewards, valid, scaling).sum(axis=1)).max() < 1e-9


@given(batches())
def test_a_group_is_centered_and_divided_by_its_bessel_corrected_deviation(
    batch: tuple[np.ndarray, np.ndarray],
) -> None:
    rewards, valid = batch
    for row, kept, advantages in zip(rewards, valid, group_advantages(rewards, valid), strict=True):
        counted = [float(reward) for reward, keep in zip(row, kept, strict=True) if keep]
        varied = len(counted) > 1 and max(counted) != min(counted)
        for reward, keep, advantage in zip(row, kept, advantages, strict=True):
            if varied and keep:
                expected = (reward - statistics.fmean(counted)) / (statistics.stdev(counted) + STD_EPSILON)
                assert advantage == pytest.approx(expected, abs=1e-9)
            else:
                assert advantage == 0


def test_the_worked_example() -> None:
    # mean 1/4, squared deviations 3/16 + 9/16 = 3/4, divided by 3 (not 4): 1/4.
    expected = np.array([[0.75, -0.25, -0.25, -0.25]]) / (0.5 + STD_EPSILON)
    assert advantages_of(binary(1, 4)) == pytest.approx(expected)


@given(REWARD, st.integers(2, 64), SCALING)
def test_equal_rewards_give_exactly_zero_and_count_on_neither_side(
    reward: float, size: int, scaling: Scaling
) -> None:
    equal = advantages_of(np.full((1, size), reward), scaling)
    assert (equal == 0).all()
    assert sign_fractions(equal) == SignFractions(0.0, 0.0)


@pytest.mark.parametrize("size", [3, 16])
def test_an_equal_group_is_not_decided_by_subtraction(size: int) -> None:
    """The mean of three times 0.1 is not 0.1 in floating point, and a denominator of 1e-4 would make much of that."""
    rewards = np.full((1, size), 0.1)
    assert size != 3 or (rewards != rewards.mean()).all(), "otherwise this test shows nothing"
    assert (advantages_of(rewards) == 0).all()


def test_a_response_at_the_mean_of_its_group_counts_on_neither_side() -> None:
    assert sign_fractions(advantages_of(np.array([[0.0, 0.1, 0.2]]))) == SignFractions(1 / 3, 1 / 3)


@given(batches(), SCALING, st.data())
def test_a_failed_verifier_leaves_no_trace_in_its_group(
    batch: tuple[np.ndarray, np.ndarray], scaling: Scaling, data: st.DataObject
) -> None:
    """Whatever number such a response carries, it gets 0 and the others what they get without it."""
    rewards, valid = batch
    other = np.where(valid, rewards, data.draw(REWARD))
    advantages = group_advantages(rewards, valid, scaling)
    assert (advantages[~valid] == 0).all()
    assert (advantages == group_advantages(other, valid, scaling)).all()


@given(batches(failing=False), st.integers(0, 2))
def test_a_group_with_fewer_than_two_verdicts_gets_zero(
    batch: tuple[np.ndarray, np.ndarray], index: int
) -> None:
    rewards, valid = batch
    assume(index < rewards.shape[1])
    valid[0] = False
    assert (group_advantages(rewards, valid)[0] == 0).all()
    valid[0, index] = True
    assert (group_advantages(rewards, valid)[0] == 0).all()


@given(
    st.integers(2, 64).flatmap(lambda size: st.tuples(st.integers(1, size - 1), st.just(size))),
    st.floats(0, 1),
)
def test_alpha_of_one_binary_group_is_p_over_one_minus_p(case: tuple[int, int], alpha_min: float) -> None:
    right, size = case
    p = right / size
    alpha = adaptive_alpha(sign_fractions(advantages_of(binary(right, size))), alpha_min)
    assert alpha == pytest.approx(min(max(p / (1 - p), alpha_min), 1))


def test_signs_are_counted_over_the_whole_batch() -> None:
    """1 of 4 and 2 of 4 right, and a group that counts on neither side: 3 positive, 5 negative."""
    rewards = np.vstack([binary(1, 4), binary(2, 4), binary(4, 4)])
    fractions = sign_fractions(advantages_of(rewards))
    assert fractions == SignFractions(3 / 12, 5 / 12)
    assert adaptive_alpha(fractions, 0.1) == pytest.approx(3 / 5)


@pytest.mark.parametrize(
    ("positive", "negative", "alpha"),
    [
        (0.25, 0.0, 1.0),
        (0.0, 0.0, 1.0),
        (0.0, 0.25, 0.1),
        (0.01, 0.99, 0.1),
        (0.6, 0.2, 1.0),
        (0.2, 0.4, 0.5),
    ],
    ids=["no negatives", "all zero", "no positives", "few positives", "few negatives", "between"],
)
def test_alpha_at_the_edges(positive: float, negative: float, alpha: float) -> None:
    assert adaptive_alpha(SignFractions(positive, negative), alpha_min=0.1) == alpha


@given(batches(), st.floats(0, 1))
def test_the_net_push_is_one_minus_alpha_times_the_positive_mass(
    batch: tuple[np.ndarray, np.ndarray], alpha: float
) -> None:
    advantages = group_advantages(*batch)
    positive_mass = advantages[advantages > 0].sum()
    assert hysteretic(advantages, alpha).sum() == pytest.approx((1 - alpha) * positive_mass, abs=1e-8)


@given(batches(), st.floats(0, 1))
def test_the_hysteretic_weight_touches_negative_advantages_only(
    batch: tuple[np.ndarray, np.ndarray], alpha: float
) -> None:
    advantages = group_advantages(*batch)
    weighted = hysteretic(advantages, alpha)
    assert (weighted[advantages >= 0] == advantages[advantages >= 0]).all()
    assert weighted[advantages < 0] == pytest.approx(alpha * advantages[advantages < 0])


@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 200))
def test_the_over_long_penalty_is_its_formula(max_tokens: int, penalized: int, length: int) -> None:
    penalized = min(penalized, max_tokens)
    if length <= max_tokens - penalized:
        expected = 0.0
    elif length <= max_tokens:
        expected = -(length - (max_tokens - penalized)) / penalized
    else:
        expected = -1.0
    assert overlong_penalties(np.array([[length]]), max_tokens, penalized).item() == pytest.approx(expected)


def test_without_penalized_tokens_there_is_no_penalty() -> None:
    assert (overlong_penalties(np.array([[1, 10, 99]]), 10, 0) == 0).all()
