"""The posterior of pass rates contains the truth as often as it claims, and nothing breaks at the edges of a sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.metrics.pass_rates import PassCounts, PassRates, Quantity


@st.composite
def samples(draw: st.DrawFn, most_prompts: int = 40, most_responses: int = 20) -> PassCounts:
    responses = draw(st.integers(1, most_responses))
    correct = draw(st.lists(st.integers(0, responses), min_size=1, max_size=most_prompts))
    return PassCounts(tuple(correct), responses)


def known(mu: float, rho: float, z: float = 0.0) -> PassRates:
    """Return the distribution with these parameters, without uncertainty."""
    return PassRates(*(np.array([value]) for value in (mu, rho, z, 1.0)))


def drawn(rng: np.random.Generator, rates: PassRates, prompts: int) -> np.ndarray:
    """Return the pass rates of so many prompts of a known distribution."""
    (mu,), (rho,), (z,) = rates.mu, rates.rho, rates.z
    a, b = mu * (1 - rho) / rho, (1 - mu) * (1 - rho) / rho
    passed: np.ndarray = rng.beta(a, b, prompts) * (rng.random(prompts) >= z)
    return passed


def sampled(rng: np.random.Generator, rates: PassRates, prompts: int, responses: int) -> PassCounts:
    correct = rng.binomial(responses, drawn(rng, rates, prompts))
    return PassCounts(tuple(correct.tolist()), responses)


def contains(quantity: Quantity, value: np.ndarray) -> bool:
    return quantity.low <= float(value[0]) <= quantity.high


@settings(max_examples=40, deadline=None)  # each fits a distribution
@given(samples())
def test_every_sample_has_finite_estimates_within_their_intervals(counts: PassCounts) -> None:
    rates = PassRates.from_counts(counts)
    for values in (rates.mean, rates.mu, rates.rho, rates.z, rates.informative(8)):
        quantity = rates.quantity(values)
        assert 0 <= quantity.low <= quantity.estimate <= quantity.high <= 1
    low, high = rates.quantity(rates.mean).low, rates.quantity(rates.mean).high
    assert low < high, "a sample never determines the mean"
    assert 0 <= rates.unsolvable_probability <= 1


@pytest.mark.parametrize("prompts", [1, 2, 500])
@pytest.mark.parametrize("responses", [1, 2, 256])
def test_samples_without_any_or_with_only_correct_responses_bound_the_mean(
    prompts: int, responses: int
) -> None:
    none = PassRates.from_counts(PassCounts((0,) * prompts, responses))
    every = PassRates.from_counts(PassCounts((responses,) * prompts, responses))
    assert none.quantity(none.mean).high < 3.7 / prompts
    assert every.quantity(every.mean).low > 1 - 3.7 / prompts - 1 / responses
    assert every.unsolvable_probability < 0.5, "each solved prompt speaks against unsolvable ones"


@settings(max_examples=25, deadline=None)
@given(samples(), st.randoms())
def test_the_order_of_the_prompts_does_not_matter(counts: PassCounts, random: object) -> None:
    shuffled = list(counts.correct)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    there = PassRates.from_counts(counts)
    back = PassRates.from_counts(PassCounts(tuple(shuffled), counts.responses))
    np.testing.assert_array_equal(there.mean, back.mean)
    assert there.quantity(there.mean) == back.quantity(back.mean)


RATES = st.builds(known, st.floats(1e-3, 0.999), st.floats(1e-3, 0.999), st.floats(0, 0.999))


@given(RATES, st.integers(1, 200))
def test_the_numbers_of_correct_responses_have_probabilities_with_the_mean_of_the_rates(
    rates: PassRates, responses: int
) -> None:
    probabilities = [float(value[0]) for value in rates.count_probabilities(responses)]
    assert len(probabilities) == responses + 1
    assert math.fsum(probabilities) == pytest.approx(1)
    mean = math.fsum(count * probability for count, probability in enumerate(probabilities)) / responses
    assert mean == pytest.approx(float(rates.mean[0]))
    assert probabilities[0] == pytest.approx(float(rates.none_solved(responses)[0]))
    assert probabilities[-1] == pytest.approx(float(rates.all_solved(responses)[0]))


@given(RATES, st.integers(1, 300))
def test_larger_groups_are_informative_more_often(rates: PassRates, responses: int) -> None:
    smaller, larger = (float(rates.informative(size)[0]) for size in (responses, responses + 1))
    assert 0 <= smaller <= larger + 1e-12
    assert larger <= 1 - float(rates.z[0])
    none, every = rates.none_solved(responses), rates.all_solved(responses)
    assert smaller == pytest.approx(1 - float(none[0]) - float(every[0]), abs=1e-12)


@given(st.floats(1e-3, 0.999), st.floats(1e-3, 0.999), st.integers(1, 200))
def test_failures_among_successes_inform_as_much_as_successes_among_failures(
    mu: float, rho: float, responses: int
) -> None:
    there, back = known(mu, rho).informative(responses), known(1 - mu, rho).informative(responses)
    assert float(there[0]) == pytest.approx(float(back[0]), rel=1e-9)


@pytest.mark.parametrize(
    "rates",
    [known(0.07, 0.05), known(0.01, 0.3), known(0.5, 0.5), known(0.2, 0.05, 0.6), known(0.95, 0.2, 0.02)],
    ids=["sparse", "rare", "easy or hard", "half unsolvable", "dense"],
)
@pytest.mark.parametrize("responses", [4, 16, 128])
def test_the_predicted_fractions_are_those_of_simulated_groups(rates: PassRates, responses: int) -> None:
    rng, groups = np.random.default_rng(responses), 200_000
    correct = rng.binomial(responses, drawn(rng, rates, groups))
    informative = ((correct > 0) & (correct < responses)).mean()
    predicted = float(rates.informative(responses)[0])
    assert abs(informative - predicted) < 5 * math.sqrt(predicted * (1 - predicted) / groups)


def test_parameters_that_are_drawn_from_the_prior_are_within_their_intervals_in_95_of_100_samples() -> None:
    """This is exact in expectation: the standard deviation of the count among 600 is 0.9 %."""
    rng, tries = np.random.default_rng(0), 600
    held = dict.fromkeys(("mean", "correlation", "informative"), 0)
    for _ in range(tries):
        truth = known(
            rng.uniform(1e-4, 0.9999), rng.uniform(1e-4, 0.999), rng.integers(2) * rng.uniform(0, 0.999)
        )
        rates = PassRates.from_counts(sampled(rng, truth, prompts=30, responses=8))
        held["mean"] += contains(rates.quantity(rates.mean), truth.mean)
        held["correlation"] += contains(rates.quantity(rates.rho), truth.rho)
        held["informative"] += contains(rates.quantity(rates.informative(8)), truth.informative(8))
    assert all(0.92 * tries < count < 0.98 * tries for count in held.values()), held


FIXED = {
    "sparse": known(0.07, 0.1),
    "rare": known(0.01, 0.1),
    "mixed": known(0.5, 0.3),
    "half unsolvable": known(0.2, 0.05, 0.5),
    "rare and alike": known(0.003, 0.01),
    "easy or hard": known(0.05, 0.5),
    "dense": known(0.9, 0.2, 0.1),
}


def times_held(truth: PassRates, sizes: tuple[int, ...], tries: int) -> dict[str, int]:
    """Return how often the intervals of samples of 128 prompts × 16 responses contain the truth."""
    rng = np.random.default_rng(1)
    held = dict.fromkeys(("mean", *map(str, sizes)), 0)
    for _ in range(tries):
        rates = PassRates.from_counts(sampled(rng, truth, prompts=128, responses=16))
        held["mean"] += contains(rates.quantity(rates.mean), truth.mean)
        for size in sizes:
            held[str(size)] += contains(rates.quantity(rates.informative(size)), truth.informative(size))
    return held


@pytest.mark.parametrize("truth", FIXED.values(), ids=FIXED)
def test_fixed_parameters_are_within_their_intervals_about_as_often(truth: PassRates) -> None:
    """With 60 samples the standard deviation of the count is 2.8 %."""
    held = times_held(truth, (8, 16), tries=60)
    assert all(count > 0.86 * 60 for count in held.values()), held


def test_where_few_prompts_were_solved_the_prior_decides_about_groups_larger_than_the_sampled_ones() -> None:
    """docs/plan.md states this limit of the method."""
    assert 0.65 * 60 < times_held(FIXED["rare and alike"], (64,), tries=60)["64"] < 0.92 * 60


def test_more_prompts_make_the_intervals_narrower_and_find_the_truth() -> None:
    truth, rng = known(0.1, 0.05, 0.3), np.random.default_rng(2)
    widths = []
    for prompts in (20, 200, 2000, 20_000):
        rates = PassRates.from_counts(sampled(rng, truth, prompts, responses=16))
        mean = rates.quantity(rates.mean)
        widths.append(mean.high - mean.low)
    assert widths == sorted(widths, reverse=True)
    assert rates.unsolvable_probability > 0.999
    assert rates.quantity(rates.z).estimate == pytest.approx(0.3, abs=0.03)
    assert rates.quantity(rates.rho).estimate == pytest.approx(0.05, abs=0.01)


def test_without_unsolvable_prompts_the_sample_finds_none() -> None:
    rates = PassRates.from_counts(sampled(np.random.default_rng(3), known(0.4, 0.05), 500, 16))
    assert rates.unsolvable_probability < 0.05
    assert rates.quantity(rates.z).estimate == 0


def test_a_single_response_to_each_prompt_tells_the_mean_but_not_how_prompts_differ() -> None:
    rates = PassRates.from_counts(PassCounts((1,) * 100 + (0,) * 300, 1))
    mean, spread = rates.quantity(rates.mean), rates.quantity(rates.informative(8))
    assert 0.2 < mean.low < 0.25 < mean.high < 0.3
    assert spread.high - spread.low > 0.5


@pytest.mark.parametrize(
    ("correct", "responses"), [((), 4), ((5,), 4), ((-1,), 4), ((0,), 0)], ids=["none", "many", "few", "zero"]
)
def test_impossible_counts_are_refused(correct: tuple[int, ...], responses: int) -> None:
    with pytest.raises(ValueError, match="responses"):
        PassCounts(correct, responses)
