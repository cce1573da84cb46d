"""The expected gradient of a group that gets more responses until one is correct.

All expectations are exact: the outcomes of small groups are enumerated. In a Bernoulli policy a response is correct
with probability p = σ(θ), so that ∇ log π of a response is r − p, and ∇p = p (1 − p).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.training.budget import AdaptiveBudget, Candidate
from learner.objective.objectives import Scaling
from learner.objective.training_batch import group_advantages

P = (0.001, 0.01, 0.05, 0.2, 0.5, 0.9)
ROUNDS = [(4,), (2, 2), (4, 4), (4, 4, 8, 16), (3, 1, 2), (8, 8, 16, 32)]
"""The numbers of responses of each round."""


def gradient(correct: int, responses: int, p: float, scaling: Scaling = "none") -> float:
    """Return Σ A_i ∇ log π of a group, with the advantages of the product."""
    rewards = np.array([[1.0] * correct + [0.0] * (responses - correct)])
    advantages = group_advantages(rewards, np.ones(rewards.shape, dtype=bool), scaling)
    return float((advantages * (rewards - p)).sum())


def stopped(rounds: Sequence[int], p: float, value: Callable[[int, int], float]) -> float:
    """Return the expectation of value(correct, responses) of a group that stops after the first round with a correct
    response."""
    total, sampled = 0.0, 0
    for size in rounds:
        reached = (1 - p) ** sampled
        sampled += size
        total += reached * sum(
            math.comb(size, k) * p**k * (1 - p) ** (size - k) * value(k, sampled) for k in range(1, size + 1)
        )
    return total + (1 - p) ** sampled * value(0, sampled)


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("baseline", [0.0, 0.3])
def test_with_a_fixed_baseline_the_sum_over_a_stopped_group_is_unbiased(
    p: float, rounds: Sequence[int], baseline: float
) -> None:
    """It is E[n] ∇p, by Wald's identity, for any baseline b: Σ (r_i − b)(r_i − p)."""
    found = stopped(rounds, p, lambda k, n: k * (1 - baseline) * (1 - p) + (n - k) * (0 - baseline) * (0 - p))
    assert found == pytest.approx(stopped(rounds, p, lambda k, n: n) * p * (1 - p))


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("rounds", ROUNDS)
def test_the_mean_of_a_stopped_group_as_a_baseline_shrinks_the_gradient_less_than_that_of_a_fixed_one(
    p: float, rounds: Sequence[int]
) -> None:
    """It shrinks E[n] ∇p by a factor between 1 − 1 / G and 1 − 1 / n_max. A group of fixed size G has 1 − 1 / G."""
    factor = stopped(rounds, p, lambda k, n: gradient(k, n, p)) / (
        stopped(rounds, p, lambda k, n: n) * p * (1 - p)
    )
    assert 1 - 1 / rounds[0] - 1e-9 <= factor <= 1 - 1 / sum(rounds) + 1e-9
    if len(rounds) == 1:
        assert factor == pytest.approx(1 - 1 / rounds[0])


def expected(budget: AdaptiveBudget, rates: Sequence[float]) -> np.ndarray:
    """Return the expected number of responses and the expected gradient of each prompt, [P, 2]. The prompts have the
    given rates of success and share the budget; their extensions are those that the product plans."""
    totals = np.zeros((len(rates), 2))

    def sample(sizes: dict[int, int], failures: dict[int, int], left: int, chance: float) -> None:
        for correct in itertools.product(*(range(size + 1) for size in sizes.values())):
            probability, failed = chance, dict(failures)
            done = []
            for (place, size), k in zip(sizes.items(), correct, strict=True):
                p, n = rates[place], failures[place] + size
                probability *= math.comb(size, k) * p**k * (1 - p) ** (size - k)
                failed[place] = n
                if k:
                    del failed[place]
                    done.append((place, k, n))
            for place, k, n in done:
                totals[place] += probability * np.array([n, gradient(k, n, rates[place])])
            plan = budget.plan([Candidate(str(place), n) for place, n in failed.items()], left)
            if plan:
                extended = {int(prompt_id): size for prompt_id, size in plan.items()}
                sample(extended, failed, left - sum(plan.values()), probability)
            else:
                for place, n in failed.items():
                    totals[place, 0] += probability * n

    places = range(len(rates))
    sample(dict.fromkeys(places, budget.chunk), dict.fromkeys(places, 0), budget.extra_responses, 1.0)
    return totals


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(P), min_size=1, max_size=3), st.integers(2, 3), st.integers(0, 7))
def test_prompts_that_compete_for_a_budget_stay_within_the_same_bounds(
    rates: list[float], chunk: int, extra: int
) -> None:
    """The outcomes of the others decide too on the responses to a prompt, but its own responses to come do not."""
    for p, (responses, direction) in zip(
        rates, expected(AdaptiveBudget(extra, chunk, chunk * 2), rates), strict=True
    ):
        factor = direction / (responses * p * (1 - p))
        assert chunk - 1e-9 <= responses <= chunk + extra + 1e-9
        assert 1 - 1 / chunk - 1e-9 <= factor <= 1 - 1 / (chunk + extra) + 1e-9


@pytest.mark.parametrize("extra", [0, 4])
def test_the_weight_of_a_prompt_grows_with_its_responses(extra: int) -> None:
    """A hard prompt gets more of them, so it counts more relative to an easy one than without a budget."""
    rates = [0.01, 0.5]
    found = expected(AdaptiveBudget(extra, 2, 2), rates)
    factors = [direction / (p * (1 - p)) for p, (_, direction) in zip(rates, found, strict=True)]
    assert (factors[0] > factors[1]) == (extra > 0)


PER_GROUP: list[Scaling] = ["group", "mean", "leave_one_out", "none"]
POLICY = np.array([0.15, 0.6, 0.25])
"""The probabilities of three answers, of which the first is correct."""


@pytest.mark.parametrize("scaling", PER_GROUP)
@pytest.mark.parametrize("rounds", [(2,), (2, 2), (2, 2, 2), (3, 2)])
def test_a_stopped_group_has_the_direction_of_the_gradient_of_p(
    rounds: Sequence[int], scaling: Scaling
) -> None:
    """This holds for every scaling of advantages, in a policy with several incorrect answers: a softmax over logits,
    where ∇ log π(y) = e_y − π. Only outcomes stop a group, so they change the prompt's weight and nothing else."""
    total = np.zeros(3)
    for answers in itertools.product(range(3), repeat=sum(rounds)):
        sampled = next((end for end in itertools.accumulate(rounds) if 0 in answers[:end]), sum(rounds))
        rewards = np.array([[float(answer == 0) for answer in answers[:sampled]]])
        advantages = group_advantages(rewards, np.ones(rewards.shape, dtype=bool), scaling)
        # The answers after the stop are not sampled; they are enumerated too, and their probabilities add up to 1.
        for answer, advantage in zip(answers, advantages[0], strict=False):
            total += POLICY[list(answers)].prod() * advantage * (np.eye(3)[answer] - POLICY)
    direction = POLICY[0] * (np.eye(3)[0] - POLICY)
    weight = total[0] / direction[0]
    assert weight > 0
    assert total == pytest.approx(weight * direction)
