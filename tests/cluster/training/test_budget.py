"""The rounds of an adaptive budget: which prompts get more responses, and how many."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.config import RolloutConfig
from cluster.training.budget import (
    AdaptiveBudget,
    Candidate,
    Prior,
    adaptive_budget,
    candidates,
    chance_of_success,
    uniform,
)
from tests.builders import make_group, make_prompt

SHAPE = st.floats(0.05, 20)
PRIORS = st.lists(st.tuples(SHAPE, SHAPE), min_size=8, max_size=8)
FAILURES = st.lists(st.integers(1, 40), max_size=8)


def numbered(failures: list[int]) -> list[Candidate]:
    return [Candidate(f"train/0/{row}", count) for row, count in enumerate(failures)]


def by_row(priors: list[tuple[float, float]]) -> Prior:
    return lambda prompt_id: priors[int(prompt_id.rpartition("/")[2])]


def budget(chunk: int, max_extension: int | None = None, prior: Prior | None = None) -> AdaptiveBudget:
    largest = max_extension or 10**6
    return AdaptiveBudget(0, chunk, largest) if prior is None else AdaptiveBudget(0, chunk, largest, prior)


# --- The chance of a first success.


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_the_chance_under_the_uniform_prior_is_m_over_n_plus_1_plus_m(failures: int, more: int) -> None:
    assert chance_of_success(failures, more) == pytest.approx(more / (failures + 1 + more), rel=1e-9)


@given(st.integers(0, 12), st.integers(1, 12), st.integers(1, 5), st.integers(1, 5))
def test_the_chance_is_that_of_an_urn(failures: int, more: int, a: int, b: int) -> None:
    """With whole a and b, Beta(a, b) is Pólya's urn of a white and b black balls: each ball that is drawn is returned
    with one more of its color. The chance is 1 minus that of drawing black balls only."""
    black = math.prod(Fraction(b + failures + drawn, a + b + failures + drawn) for drawn in range(more))
    assert chance_of_success(failures, more, a, b) == pytest.approx(float(1 - black), rel=1e-9)


@given(st.integers(0, 200), st.integers(1, 50), SHAPE, SHAPE)
def test_the_chance_falls_with_every_failure_and_rises_with_every_response(
    failures: int, more: int, a: float, b: float
) -> None:
    chance = chance_of_success(failures, more, a, b)
    assert 0 < chance < 1
    assert chance_of_success(failures + 1, more, a, b) < chance < chance_of_success(failures, more + 1, a, b)


# --- The groups that may get more.


@pytest.mark.parametrize(
    ("rewards", "failures"),
    [
        ([0.0, 0.0], [2]),
        ([0.0, None, 0.0], [2]),  # a response without a verdict is no failure
        ([1.0, 0.0], []),
        ([1.0, 1.0], []),
        ([1.0, None], []),
        ([None, None], []),
    ],
)
def test_groups_with_incorrect_responses_only_are_candidates(
    rewards: list[float | None], failures: list[int]
) -> None:
    assert [found.failures for found in candidates([make_group(rewards)])] == failures


def test_a_candidate_is_named_by_its_prompt() -> None:
    group = make_group([0.0, 0.0], prompt=make_prompt("train/3/14"))
    assert candidates([make_group(), group]) == [Candidate("train/3/14", 2)]


# --- A round.


@given(FAILURES, st.integers(0, 200), st.integers(1, 16), st.integers(1, 40), PRIORS)
def test_a_round_stays_within_the_budget_and_is_empty_only_without_any(
    failures: list[int], left: int, chunk: int, extension: int, priors: list[tuple[float, float]]
) -> None:
    extension = max(chunk, extension)
    found = numbered(failures)
    plan = budget(chunk, extension, by_row(priors)).plan(found, left)
    assert sum(plan.values()) <= left
    assert all(responses >= 1 for responses in plan.values())
    assert plan.keys() <= {candidate.prompt_id for candidate in found}
    assert bool(plan) == (left > 0 and bool(found))
    for candidate in found:
        most = min(max(chunk, candidate.failures), extension)
        assert plan.get(candidate.prompt_id, 0) <= most, "at most as many as it has, or one chunk"


@given(FAILURES, st.integers(0, 200), st.integers(1, 16), PRIORS)
def test_no_prompt_with_a_larger_chance_is_passed_over(
    failures: list[int], left: int, chunk: int, priors: list[tuple[float, float]]
) -> None:
    """The chance of a prompt before its last chunk of the round is at least that of a prompt without any."""
    prior, found = by_row(priors), numbered(failures)
    plan = budget(chunk, prior=prior).plan(found, left)

    def chance(candidate: Candidate, planned: int = 0) -> float:
        return chance_of_success(candidate.failures + planned, chunk, *prior(candidate.prompt_id))

    chances = [
        chance(candidate, (plan[candidate.prompt_id] - 1) // chunk * chunk)
        for candidate in found
        if candidate.prompt_id in plan
    ]
    passed_over = [chance(candidate) for candidate in found if candidate.prompt_id not in plan]
    assert min(chances, default=1.0) >= max(passed_over, default=0.0)


@given(FAILURES, st.integers(0, 200), st.integers(1, 16), st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_decides_only_among_equal_chances(
    failures: list[int], left: int, chunk: int, chance: random.Random
) -> None:
    found = numbered(failures)
    plan = budget(chunk).plan(found, left)
    chance.shuffle(found)
    other = budget(chunk).plan(found, left)
    count_of = dict(found)

    def given_by_count(extensions: dict[str, int]) -> list[tuple[int, int]]:
        return sorted((count_of[prompt_id], responses) for prompt_id, responses in extensions.items())

    assert given_by_count(plan) == given_by_count(other)


@given(FAILURES, st.integers(1, 400), st.integers(1, 16), PRIORS, st.lists(st.integers(0, 5), max_size=8))
def test_rounds_spend_the_whole_budget_unless_every_prompt_succeeds(
    failures: list[int], left: int, chunk: int, priors: list[tuple[float, float]], solved: list[int]
) -> None:
    """Prompt i succeeds in its round solved[i], or never if that is 0 or missing. A prompt that fails is drawn again,
    and one that succeeds is not."""
    rounds_of = dict(enumerate([*solved, *[0] * 8][:8]))
    found, adaptive, rounds = numbered(failures), budget(chunk, prior=by_row(priors)), 0
    extensions: dict[str, int] = dict.fromkeys((candidate.prompt_id for candidate in found), 0)
    while plan := adaptive.plan(found, left):
        rounds += 1
        left -= sum(plan.values())
        for prompt_id in plan:
            extensions[prompt_id] += 1
        found = [
            candidate._replace(failures=candidate.failures + plan.get(candidate.prompt_id, 0))
            for candidate in found
            if not extensions[candidate.prompt_id]
            or extensions[candidate.prompt_id] != rounds_of[int(candidate.prompt_id.rpartition("/")[2])]
        ]
    assert left == 0 or not found
    assert left >= 0


def test_the_number_of_rounds_is_logarithmic_in_the_budget() -> None:
    """A single prompt that is never solved: 16 responses, then twice as many after each round."""
    left, failures, sizes = 16 * 63, 16, []
    while plan := budget(16).plan(numbered([failures]), left):
        (responses,) = plan.values()
        sizes.append(responses)
        left, failures = left - responses, failures + responses
    assert sizes == [16, 32, 64, 128, 256, 512]


def test_a_small_budget_goes_to_the_prompts_with_the_fewest_failures() -> None:
    found = numbered([16, 4, 8, 4])
    assert budget(4).plan(found, 8) == {"train/0/1": 4, "train/0/3": 4}
    assert budget(4).plan(found, 6) == {"train/0/1": 4, "train/0/3": 2}
    assert budget(4).plan(found, 3) == {"train/0/1": 3}


def test_a_prior_that_knows_more_decides() -> None:
    """The second prompt is often solved, and its failures were bad luck."""
    prior = by_row([(1, 50), (5, 5)])
    assert budget(4, prior=prior).plan(numbered([4, 12]), 4) == {"train/0/1": 4}


def test_the_budget_of_a_configuration_is_what_is_beyond_the_first_responses() -> None:
    rollout = RolloutConfig(prompts_per_step=4, responses_per_prompt=8, adaptive_budget=50, max_sequences=20)
    assert adaptive_budget(rollout, uniform) == AdaptiveBudget(extra_responses=18, chunk=8, max_extension=20)
    assert adaptive_budget(rollout.model_copy(update={"adaptive_budget": None}), uniform) is None
