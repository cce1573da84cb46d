"""The predictions for group sizes are what training batches of simulated groups show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.config import ObjectiveConfig
from cluster.metrics.group_sizes import (
    GROUP_SIZES,
    NEARLY_BEST,
    group_sizes,
    largest_unseen_rate,
    measured_informative,
    sign_ratio,
    signal,
    suggestion,
)
from cluster.metrics.pass_rates import PassCounts, PassRates
from learner.objective.training_batch import build_training_batch
from tests.builders import make_group
from tests.cluster.metrics.test_pass_rates import RATES, drawn, known, samples

TRUTHS = pytest.mark.parametrize(
    "truth",
    [known(0.07, 0.05), known(0.02, 0.3), known(0.5, 0.5), known(0.3, 0.05, 0.6)],
    ids=["sparse", "rare", "easy or hard", "half unsolvable"],
)


@TRUTHS
@pytest.mark.parametrize("size", [4, 16])
def test_a_training_batch_has_the_predicted_informative_groups_and_alpha(truth: PassRates, size: int) -> None:
    rng, groups = np.random.default_rng(size), 4000
    solved = rng.random((groups, size)) < drawn(rng, truth, groups)[:, None]
    batch = [make_group(row.astype(float).tolist()) for row in solved]
    metrics = build_training_batch(batch, ObjectiveConfig(name="a_hpo", alpha_min=0.1), 16).metrics
    predicted = float(truth.informative(size)[0])
    error = 5 * math.sqrt(predicted * (1 - predicted) / groups)
    assert 1 - metrics["reward/zero_variance_fraction"] == pytest.approx(predicted, abs=error)
    ratio = float(sign_ratio(truth, size)[0])
    correct = solved.sum(axis=1)
    correct = correct[(correct > 0) & (correct < size)]
    error = 5 * math.sqrt(np.square(correct - ratio * (size - correct)).sum()) / (size - correct).sum()
    assert metrics["objective/alpha"] == pytest.approx(np.clip(ratio, 0.1, 1), abs=error)


@TRUTHS
@pytest.mark.parametrize("size", [4, 32])
def test_the_signal_is_the_squared_signal_to_noise_of_simulated_updates(truth: PassRates, size: int) -> None:
    """Each response has a score: ½ for a correct one and −½ for an incorrect one, beside noise that is much larger. The
    update of a group is the mean of advantage × score, with advantages of GRPO."""
    rng, groups, noise = np.random.default_rng(size), 2_000_000 // size, 10.0
    solved = rng.random((groups, size)) < drawn(rng, truth, groups)[:, None]
    rate = solved.mean(axis=1, keepdims=True)
    deviation = np.sqrt(rate * (1 - rate))
    advantages = np.divide(solved - rate, deviation, where=deviation > 0, out=np.zeros(solved.shape))
    useful = (advantages * (solved - 0.5)).mean(axis=1).mean()
    variance = (advantages * rng.normal(0, noise, solved.shape)).mean(axis=1).var()
    per_response = useful**2 / variance / size * noise**2
    assert float(signal(truth, size)[0]) == pytest.approx(4 * per_response, rel=0.1)


@settings(max_examples=50)
@given(RATES, st.integers(2, 100))
def test_the_signal_is_at_most_that_of_optimally_weighted_groups(rates: PassRates, size: int) -> None:
    """By Cauchy and Schwarz: E[w]² / P(w > 0) ≤ E[w²] = E[c (G − c)] / G²."""
    squares = math.fsum(
        correct * (size - correct) / size**2 * float(probability[0])
        for correct, probability in enumerate(rates.count_probabilities(size))
    )
    assert 0 <= float(signal(rates, size)[0]) <= 4 * squares * (1 + 1e-9) <= 1 + 1e-9


@settings(max_examples=25)
@given(st.floats(0.05, 0.95), st.integers(2, 100))
def test_where_prompts_are_equally_difficult_the_largest_groups_tend_to_p_times_1_minus_p(
    p: float, size: int
) -> None:
    large = float(signal(known(p, 1e-6), 400)[0])
    assert large == pytest.approx(4 * p * (1 - p), rel=0.03)
    assert float(signal(known(p, 1e-6), size)[0]) <= 4 * p * (1 - p)


@given(RATES, st.integers(2, 200))
def test_groups_of_two_have_as_many_positive_as_negative_advantages_and_larger_ones_lean_to_the_majority(
    rates: PassRates, size: int
) -> None:
    assert float(sign_ratio(rates, 2)[0]) == pytest.approx(1)
    if float(rates.mu[0]) < 0.5 and float(rates.informative(size)[0]) > 1e-9:
        assert float(sign_ratio(rates, size)[0]) <= 1 + 1e-6


@given(samples(), st.integers(1, 25))
def test_the_fraction_without_a_model_is_that_of_all_choices(counts: PassCounts, size: int) -> None:
    found = measured_informative(counts, size)
    if size > counts.responses:
        assert found is None
        return
    assert found is not None
    choices = math.comb(counts.responses, size)
    informative = [
        choices - math.comb(correct, size) - math.comb(counts.responses - correct, size)
        for correct in counts.correct
    ]
    assert found == pytest.approx(sum(informative) / choices / len(counts.correct))


def test_the_model_agrees_with_the_fraction_that_needs_none() -> None:
    rng = np.random.default_rng(0)
    counts = PassCounts(tuple(rng.binomial(16, rng.beta(0.4, 4, 400)).tolist()), 16)
    rates = PassRates.from_counts(counts)
    for size in group_sizes(counts, rates, 512, 1, 0.1, (4, 8, 16)):
        assert size.measured_informative is not None
        assert size.informative.low < size.measured_informative < size.informative.high


@settings(max_examples=15, deadline=None)  # each fits a distribution
@given(samples(most_prompts=20, most_responses=8), st.sampled_from([0.0, 0.1, 1.0]))
def test_predictions_are_in_order_whatever_was_sampled(counts: PassCounts, alpha_min: float) -> None:
    rates = PassRates.from_counts(counts)
    sizes = group_sizes(counts, rates, 512, 2, alpha_min, (16, 4, 8, 8))
    assert [size.responses for size in sizes] == [4, 8, 16]
    for size in sizes:
        quantities = (size.informative, size.alpha, size.responses_per_informative_group, size.signal)
        for quantity in quantities:
            assert 0 <= quantity.low <= quantity.estimate <= quantity.high
        assert alpha_min <= size.alpha.low <= size.alpha.high <= 1
        assert size.informative.high <= 1
        assert size.signal.high <= 1
        assert size.responses_per_informative_group.low >= size.responses
        assert size.prompts == 512 / size.responses
        assert size.informative_groups_per_step is not None
        assert size.informative_groups_per_step.high <= size.prompts
    informative = [size.informative.estimate for size in sizes]
    assert informative == sorted(informative)
    chosen = suggestion(rates, sizes)
    assert chosen.size in sizes
    assert chosen.best_between[0] <= chosen.best_between[1]
    best = max(sizes, key=lambda size: size.signal.estimate)
    assert best.responses in chosen.nearly_best
    assert chosen.size.responses == min(chosen.nearly_best)
    assert chosen.size.signal.estimate >= NEARLY_BEST * best.signal.estimate


@pytest.mark.parametrize(
    ("step", "parts", "prompts"),
    [
        (512, 1, [128, 64, 32, 16, 8, 4]),
        (512, 8, [128, 64, 32, 16, 8, None]),
        (48, 1, [12, 6, 3, None, None, None]),
    ],
)
def test_a_step_is_divided_only_without_a_rest(step: int, parts: int, prompts: list[int | None]) -> None:
    counts = PassCounts((1, 2, 0), 4)
    sizes = group_sizes(counts, PassRates.from_counts(counts), step, parts, 0.1, GROUP_SIZES)
    assert [size.prompts for size in sizes] == prompts
    assert [size.informative_groups_per_step is None for size in sizes] == [p is None for p in prompts]


def test_a_size_is_suggested_only_if_a_step_can_be_divided_into_its_groups() -> None:
    counts = PassCounts((1, 2, 0), 4)
    rates = PassRates.from_counts(counts)
    assert suggestion(rates, group_sizes(counts, rates, 48, 1, 0.1, GROUP_SIZES)).size.responses in (4, 8, 16)
    with pytest.raises(ValueError, match="divided"):
        suggestion(rates, group_sizes(counts, rates, 7, 1, 0.1, GROUP_SIZES))


def test_rarely_solved_prompts_need_smaller_groups_than_prompts_that_are_solved_half_of_the_time() -> None:
    half = PassCounts(tuple(np.random.default_rng(0).binomial(16, 0.5, 500).tolist()), 16)
    rarely = PassCounts((0,) * 250 + tuple(np.random.default_rng(0).binomial(16, 0.02, 250).tolist()), 16)
    chosen = {}
    for name, counts in (("half", half), ("rarely", rarely)):
        rates = PassRates.from_counts(counts)
        chosen[name] = suggestion(rates, group_sizes(counts, rates, 1024, 1, 0.1, GROUP_SIZES)).size.responses
    assert chosen["rarely"] < chosen["half"]


@given(st.integers(1, 10**6))
def test_the_bound_without_a_success_is_the_rule_of_three(trials: int) -> None:
    bound = largest_unseen_rate(trials)
    assert (1 - bound) ** trials == pytest.approx(0.05, rel=1e-6)
    assert bound <= 3 / trials
    if trials > 100:
        assert bound == pytest.approx(3 / trials, rel=0.02)


def test_without_a_trial_there_is_no_bound() -> None:
    with pytest.raises(ValueError, match="nothing is known"):
        largest_unseen_rate(0)
