"""The laws of the informative selection: beliefs, chances and draws."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cluster.run_state.selection_state import SelectionState
from cluster.training.selection import (
    DECAY,
    EXPLORATION,
    PRIOR,
    Evidence,
    Selection,
    _Urn,
    signal_weights,
)

UNIT = 2**32
SEED = st.integers(0, 2**32)
COUNT = st.integers(0, 10**6)
GROUP = st.tuples(COUNT, COUNT)


def selection(rows: int) -> Selection:
    return Selection(SelectionState.initial(rows))


def chances(of: Selection) -> list[Fraction]:
    """Return the exact probability of each row in the next draw."""
    masses = of._urn.masses.tolist()
    return [Fraction(mass, sum(masses)) for mass in masses[: of.state.rows]]


def observe_groups(of: Selection, row: int, groups: list[tuple[int, int]]) -> None:
    """Let `row` be drawn, whatever the order, and observed once per group."""
    for correct, incorrect in groups:
        while not of.state.in_flight[row]:
            of.draw(0, int(of.state.drawn.sum()))
        others = [other for other in np.flatnonzero(of.state.in_flight).tolist() if other != row]
        of.observe([Evidence(row, correct, incorrect)], trained=[row], dropped=others)


@given(st.lists(GROUP, min_size=1))
def test_a_weight_is_the_expected_reward_variance(groups: list[tuple[int, int]]) -> None:
    a, b = (np.array(column, dtype=np.float64) + 1 for column in zip(*groups, strict=True))
    for weight, correct, incorrect in zip(signal_weights(a, b), *zip(*groups, strict=True), strict=True):
        total = correct + incorrect + 2
        exact = Fraction((correct + 1) * (incorrect + 1), total * (total + 1)) * UNIT
        assert abs(int(weight) - exact) <= max(1, exact / 2**40)
        assert 1 <= weight <= UNIT // 4


def test_a_weight_is_the_mean_of_p_times_1_minus_p_over_the_posterior() -> None:
    """The formula is checked against an integral of Beta(3, 15), the posterior after 2 of 16 correct responses."""
    p = (np.arange(10**5) + 0.5) / 10**5
    density = p**2 * (1 - p) ** 14
    mean = (p * (1 - p) * density).sum() / density.sum()
    assert signal_weights(np.array([3.0]), np.array([15.0]))[0] / UNIT == pytest.approx(mean, rel=1e-6)


@given(st.lists(GROUP, max_size=20))
def test_beliefs_stay_positive_and_finite_and_rest_on_few_groups(groups: list[tuple[int, int]]) -> None:
    believed = selection(1)
    observe_groups(believed, 0, groups)
    a, b = believed.posterior(0)
    assert a >= PRIOR[0]
    assert b >= PRIOR[1]
    largest = max((correct + incorrect for correct, incorrect in groups), default=0)
    assert a + b - sum(PRIOR) <= largest / (1 - DECAY)


@given(st.lists(GROUP, max_size=5), st.lists(GROUP, max_size=5), st.lists(GROUP.filter(any), max_size=30))
def test_the_past_is_forgotten(
    one: list[tuple[int, int]], other: list[tuple[int, int]], same: list[tuple[int, int]]
) -> None:
    """Two rows that differ in their past come together, by the factor `DECAY` with each group."""
    posteriors = []
    for past in (one, other):
        for groups in (past, past + same):
            believed = selection(1)
            observe_groups(believed, 0, groups)
            posteriors.append(np.array(believed.posterior(0)))
    before, after = abs(posteriors[0] - posteriors[2]), abs(posteriors[1] - posteriors[3])
    np.testing.assert_allclose(after, before * DECAY ** len(same), atol=1e-8)


def test_the_newest_group_is_not_decayed_and_the_one_before_is() -> None:
    believed = selection(1)
    observe_groups(believed, 0, [(8, 0), (1, 3)])
    assert believed.posterior(0) == (1 + 8 * DECAY + 1, 1 + 3)


def test_a_prompt_that_is_solved_sometimes_comes_before_new_ones_and_these_before_hopeless_ones() -> None:
    believed = selection(4)
    for row, group in enumerate([(8, 8), (0, 16), (16, 0)]):
        observe_groups(believed, row, [group])
    half, never, always, new = chances(believed)
    assert half > new > never == always > 0


@st.composite
def selections(draw: st.DrawFn) -> Selection:
    """Return a selection after any number of batches, with any number of rows in flight."""
    rows = draw(st.integers(1, 12))
    believed = selection(rows)
    number = 0
    for _ in range(draw(st.integers(0, 6))):
        for _ in range(draw(st.integers(0, rows - int(believed.state.in_flight.sum())))):
            believed.draw(3, number)
            number += 1
        in_flight = np.flatnonzero(believed.state.in_flight).tolist()
        settled = draw(st.lists(st.sampled_from(in_flight), unique=True)) if in_flight else []
        dropped = draw(st.integers(0, len(settled)))
        evidence = [Evidence(row, *draw(GROUP)) for row in settled]
        believed.observe(evidence, trained=settled[dropped:], dropped=settled[:dropped])
    return believed


@given(selections())
def test_no_row_is_lost_and_none_is_drawn_twice_in_flight(believed: Selection) -> None:
    """In each draw a row that is not in flight has a chance of at least EXPLORATION / rows. So it waits at most
    rows / EXPLORATION draws on average, whatever the responses were."""
    in_flight = believed.state.in_flight
    assume(not in_flight.all())
    exact = chances(believed)
    assert sum(exact) == 1
    for row, chance in enumerate(exact):
        if in_flight[row]:
            assert chance == 0
        else:
            assert chance >= EXPLORATION / believed.state.rows


@given(st.lists(GROUP, min_size=1, max_size=8))
def test_chances_are_a_mixture_of_the_weights_and_the_uniform_choice(groups: list[tuple[int, int]]) -> None:
    believed = selection(len(groups))
    for row, group in enumerate(groups):
        observe_groups(believed, row, [group])
    posteriors = np.array([believed.posterior(row) for row in range(len(groups))])
    weights = signal_weights(*posteriors.T)
    for chance, weight in zip(chances(believed), weights.tolist(), strict=True):
        mixture = (1 - EXPLORATION) * Fraction(weight, int(weights.sum())) + EXPLORATION / len(groups)
        assert abs(chance - mixture) <= Fraction(len(groups), 2**20)


@pytest.mark.parametrize("rows", [1, 7, 1023, 1024, 1025, 3000])
def test_each_unit_of_mass_leads_to_its_row(rows: int) -> None:
    """So a uniform unit draws each row with its exact chance, also across the blocks in which masses are summed."""
    masses = np.random.default_rng(rows).integers(0, 4, rows)
    masses[0] = 1
    taken = Counter(_Urn(masses).take(unit) for unit in range(int(masses.sum())))
    assert taken == {row: mass for row, mass in enumerate(masses.tolist()) if mass}


@settings(max_examples=20)
@given(st.integers(1, 40) | st.integers(1000, 2100), SEED)
def test_rows_that_are_not_observed_are_drawn_once_each(rows: int, seed: int) -> None:
    believed = selection(rows)
    assert sorted(believed.draw(seed, number) for number in range(rows)) == list(range(rows))
    with pytest.raises(ValueError, match=f"all {rows} training prompts are in flight"):
        believed.draw(seed, rows)


@settings(max_examples=50)
@given(selections(), SEED)
def test_a_copy_of_the_state_continues_with_the_same_draws(believed: Selection, seed: int) -> None:
    resumed = Selection(believed.state)
    free = believed.state.rows - int(believed.state.in_flight.sum())
    assert [resumed.draw(seed, k) for k in range(free)] == [believed.draw(seed, k) for k in range(free)]
    for name in ("correct", "incorrect", "drawn", "trained", "dropped"):
        np.testing.assert_array_equal(getattr(resumed.state, name), getattr(believed.state, name))


def test_draws_depend_on_the_seed_and_the_number() -> None:
    firsts = {(seed, number): selection(10**6).draw(seed, number) for seed in range(3) for number in range(3)}
    assert len(set(firsts.values())) == 9
    assert selection(10**6).draw(2, 1) == firsts[2, 1]


def test_a_group_without_a_verdict_changes_no_belief() -> None:
    believed = selection(1)
    observe_groups(believed, 0, [(1, 3), (0, 0)])
    assert believed.posterior(0) == (2.0, 4.0)
    assert believed.state.trained[0] == 2


@pytest.mark.parametrize(("trained", "dropped"), [([1], []), ([], [1]), ([0], [0]), ([0, 0], [])])
def test_only_rows_in_flight_are_settled(trained: list[int], dropped: list[int]) -> None:
    believed = selection(2)
    believed.draw(seed=next(seed for seed in range(100) if selection(2).draw(seed, 0) == 0), number=0)
    with pytest.raises(ValueError, match="not in flight"):
        believed.observe([], trained, dropped)
    assert believed.state.trained.sum() == believed.state.dropped.sum() == 0


def test_a_batch_of_better_prompts_has_a_signal_above_1() -> None:
    believed = selection(2)
    observe_groups(believed, 0, [(8, 8)])
    observe_groups(believed, 1, [(0, 16)])
    half, never = believed.relative_signal([0]), believed.relative_signal([1])
    assert half > 1 > never
    assert math.isclose(believed.relative_signal([0, 1]), 1)
    assert believed.drawn_fraction == 1
