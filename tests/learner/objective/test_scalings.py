"""The scalings of advantages: what each divides by, and how they are connected."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from learner.objective.objectives import Scaling
from learner.objective.training_batch import STD_EPSILON, group_advantages
from tests.learner.objective.test_advantages import REWARD, SCALING, advantages_of, batches, binary

Batch = tuple[np.ndarray, np.ndarray]


def centered(batch: Batch) -> np.ndarray:
    return group_advantages(*batch, "none")


# --- What each divides by.


@given(batches())
def test_scaling_none_only_centers(batch: Batch) -> None:
    rewards, valid = batch
    for row, kept, advantages in zip(rewards, valid, centered(batch), strict=True):
        if kept.sum() > 1:
            assert advantages[kept] == pytest.approx(row[kept] - row[kept].mean(), abs=1e-9)


@given(batches())
def test_scaling_batch_divides_all_groups_by_one_deviation(batch: Batch) -> None:
    """That of the centered rewards that vary, Bessel-corrected: groups without any variance do not shrink it."""
    used = [
        float(value)
        for row, kept in zip(centered(batch), batch[1], strict=True)
        if (row != 0).any()
        for value in row[kept]
    ]
    deviation = math.sqrt(sum(value**2 for value in used) / (len(used) - 1)) if used else 0.0
    expected = centered(batch) / (deviation + STD_EPSILON)
    assert group_advantages(*batch, "batch") == pytest.approx(expected, abs=1e-9)


@given(batches())
def test_scaling_whole_batch_divides_by_the_deviation_over_all_groups(batch: Batch) -> None:
    """Groups without any variance do shrink it."""
    used = centered(batch)[batch[1]].tolist()
    deviation = statistics.stdev(used) if len(used) > 1 else 0.0
    expected = centered(batch) / (deviation + STD_EPSILON)
    assert group_advantages(*batch, "whole_batch") == pytest.approx(expected, abs=1e-7)


@given(batches())
def test_scaling_whole_batch_normalizes_mean_and_deviation_of_the_batch(batch: Batch) -> None:
    assume(np.any(centered(batch)))
    found = group_advantages(*batch, "whole_batch")[batch[1]]
    assert found.mean() == pytest.approx(0, abs=1e-9)
    deviation = np.std(centered(batch)[batch[1]], ddof=1)
    assert found.std(ddof=1) == pytest.approx(deviation / (deviation + STD_EPSILON))


def test_equal_groups_enlarge_the_advantages_of_the_others_for_the_whole_batch_alone() -> None:
    one, four = binary(2, 4), np.vstack([binary(2, 4), np.zeros((3, 4))])
    assert (advantages_of(four, "batch")[0] == advantages_of(one, "batch")[0]).all()
    # Squared deviations of 4 · 1/4 are divided by 15 in place of 3.
    assert advantages_of(four, "whole_batch")[0, 0] == pytest.approx(0.5 / (math.sqrt(1 / 15) + STD_EPSILON))
    assert advantages_of(one, "whole_batch")[0, 0] == pytest.approx(0.5 / (math.sqrt(1 / 3) + STD_EPSILON))


@given(batches())
def test_leave_one_out_subtracts_the_mean_of_the_others(batch: Batch) -> None:
    rewards, valid = batch
    for row, kept, advantages in zip(
        rewards, valid, group_advantages(rewards, valid, "leave_one_out"), strict=True
    ):
        counted = row[kept].tolist()
        for i, advantage in enumerate(advantages[kept].tolist()):
            others = counted[:i] + counted[i + 1 :]
            expected = counted[i] - statistics.fmean(others) if others else 0.0
            assert advantage == pytest.approx(expected, abs=1e-9)


@given(batches())
def test_leave_one_out_is_n_over_n_minus_one_times_the_centered_reward(batch: Batch) -> None:
    """N is the number of responses that were verified, in each group."""
    n = np.maximum(batch[1].sum(axis=1, keepdims=True), 2)
    expected = n / (n - 1) * centered(batch)
    assert group_advantages(*batch, "leave_one_out") == pytest.approx(expected, rel=1e-12)


def test_maxrl_by_hand() -> None:
    """1 of 4 correct, 3 of 4 correct, all, and none."""
    rewards = np.vstack([binary(1, 4), binary(3, 4), binary(4, 4), binary(0, 4)])
    expected = [[3, -1, -1, -1], [1 / 3, 1 / 3, 1 / 3, -1], [0] * 4, [0] * 4]
    assert advantages_of(rewards, "mean") == pytest.approx(np.array(expected))


@given(batches())
def test_maxrl_is_the_group_normalized_advantage_times_deviation_over_mean(batch: Batch) -> None:
    rewards, valid = np.abs(batch[0]), batch[1]
    normalized = group_advantages(rewards, valid, "group")
    for row, kept, base, found in zip(
        rewards, valid, normalized, group_advantages(rewards, valid, "mean"), strict=True
    ):
        counted = row[kept].tolist()
        if len(counted) < 2 or not any(counted):
            assert not found.any()
        else:
            factor = (statistics.stdev(counted) + STD_EPSILON) / statistics.fmean(counted)
            assert found == pytest.approx(base * factor, rel=1e-9, abs=1e-12)


@given(batches(), st.floats(0.01, 100))
def test_maxrl_does_not_depend_on_the_unit_of_rewards(batch: Batch, unit: float) -> None:
    rewards, valid = np.abs(batch[0]), batch[1]
    assert group_advantages(rewards * unit, valid, "mean") == pytest.approx(
        group_advantages(rewards, valid, "mean"), rel=1e-9, abs=1e-9
    )


@given(batches(failing=False))
def test_maxrl_is_bounded_and_zero_without_a_positive_mean(batch: Batch) -> None:
    """For rewards of any sign. The bound is the advantage of a single correct response."""
    rewards, _ = batch
    found = advantages_of(rewards, "mean")
    assert np.abs(found).max() <= rewards.shape[1] - 1
    for row, advantages in zip(rewards, found, strict=True):
        if math.fsum(row.tolist()) / len(row) <= 1e-14 * np.abs(row).max():  # 0, but for rounding
            assert not advantages.any()
        else:
            assert (np.sign(advantages) == np.sign(advantages_of(row[None], "none")[0])).all()


@pytest.mark.parametrize("rewards", [[0.1, 0.2, -0.3], [1.0, -1.0], [1e300, -1e300, 1.0]])
def test_a_mean_that_rounding_makes_positive_is_zero(rewards: list[float]) -> None:
    """The first sum is 5.6e-17 in floating point."""
    assert not advantages_of(np.array([rewards]), "mean").any()


# --- All of them.


@given(batches(failing=False), SCALING)
def test_scaling_changes_sizes_never_sides(batch: Batch, scaling: Scaling) -> None:
    rewards, valid = batch
    if scaling == "mean":
        rewards = np.abs(rewards)
    signs = np.sign(centered((rewards, valid)))
    assert (np.sign(group_advantages(rewards, valid, scaling)) == signs).all()


@given(batches(failing=False), SCALING, st.lists(REWARD, min_size=1, max_size=3))
def test_responses_that_were_not_verified_are_as_if_the_group_were_smaller(
    batch: Batch, scaling: Scaling, extra: list[float]
) -> None:
    rewards, valid = batch
    more = np.tile(extra, (len(rewards), 1))
    found = group_advantages(
        np.hstack([rewards, more]), np.hstack([valid, np.zeros(more.shape, dtype=bool)]), scaling
    )
    assert found[:, : rewards.shape[1]] == pytest.approx(
        group_advantages(rewards, valid, scaling), rel=1e-9, abs=1e-9
    )
