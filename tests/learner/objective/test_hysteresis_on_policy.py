"""α with exactly on-policy samples and one optimizer step: it changes a prompt's weight, not its direction.

The expected gradient is computed exactly, by enumerating all groups that a softmax policy can sample, with the
product's batch builder and loss. For a prompt with success probability p, rewards of 0 and 1, and a fixed α:

    E[g with α] = ((1 − p) + α p) · E[g with α = 1]

Derivation. Let K of the G responses be correct, s = ∇ log π, and s⁺ and s⁻ its expectations over correct and over
incorrect responses. All scalings have the advantages c (R − K / G), with a c that depends on the rewards alone. Given
the rewards, the responses are independent, so

    E[g | rewards] = c / G · (K (1 − K / G) s⁺ − α (G − K) (K / G) s⁻) = c K (G − K) / G² · (s⁺ − α s⁻)

E[s] = 0 means p s⁺ + (1 − p) s⁻ = 0, so s⁺ − α s⁻ = s⁺ ((1 − p) + α p) / (1 − p). Only this last factor depends on α,
and s⁺ = ∇p / p. Hence the law is exact for every scaling, also for those that divide by a statistic of the batch, if
the scale of a token does not depend on the sampled responses: here all responses have one token. With an α that depends
on the rewards (A-HPO) the direction is kept too, and the factor has a weighted mean of α in place of α. The direction
is not kept where the samples are another policy's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cluster.core.config import ObjectiveConfig
from learner.objective.loss import PolicyLogprobs, policy_loss
from learner.objective.objectives import Scaling
from learner.objective.training_batch import build_training_batch
from tests.builders import make_group, make_prompt, make_response

RESPONSES_PER_PROMPT = 3
TOKENS = 3
CORRECT = (0,)
"""The responses are single tokens; those listed are correct."""

Rewards = tuple[float, ...]
logits = st.lists(st.floats(-2, 2), min_size=TOKENS, max_size=TOKENS)


def advantages_and_scales(
    rewards: Sequence[Rewards], config: ObjectiveConfig
) -> dict[int, tuple[float, float]]:
    """Return the advantage and the scale of each trained response of a batch by its number, which is its token."""
    number = itertools.count()
    groups = [
        make_group(
            of_group, [make_response([next(number)]) for _ in of_group], make_prompt(f"train/0/{prompt}")
        )
        for prompt, of_group in enumerate(rewards)
    ]
    samples = build_training_batch(groups, config, max_response_tokens=1).samples
    return {int(sample.response_token_ids[0]): (sample.advantage, sample.scale) for sample in samples}


def expected_gradient(
    logits_PV: np.ndarray, config: ObjectiveConfig, sampled_with_PV: np.ndarray | None = None
) -> np.ndarray:
    """Return the expectation of the loss's gradient [P, V] with respect to the logits of each prompt, over all batches
    of one group per prompt, sampled with `sampled_with_PV` (by default the policy itself)."""
    policy_PV = torch.tensor(logits_PV, requires_grad=True)
    new_PV = policy_PV.log_softmax(dim=1)
    sampler_PV = probabilities(logits_PV if sampled_with_PV is None else sampled_with_PV)
    builds: dict[tuple[Rewards, ...], dict[int, tuple[float, float]]] = {}
    found: dict[tuple[int, int, float], float] = {}  # the summed factors by prompt, token and advantage
    groups = list(itertools.product(range(TOKENS), repeat=RESPONSES_PER_PROMPT))
    chance_of = [
        {group: math.prod(row[token] for token in group) for group in groups} for row in sampler_PV.tolist()
    ]
    for batch in itertools.product(groups, repeat=len(logits_PV)):
        chance = math.prod(chances[group] for chances, group in zip(chance_of, batch, strict=True))
        rewards = tuple(tuple(float(token in CORRECT) for token in group) for group in batch)
        if rewards not in builds:
            builds[rewards] = advantages_and_scales(rewards, config)
        for number, (advantage, scale) in builds[rewards].items():
            prompt, position = divmod(number, RESPONSES_PER_PROMPT)
            key = (prompt, batch[prompt][position], advantage)
            found[key] = found.get(key, 0.0) + chance * scale
    prompts, tokens, advantages = zip(*found, strict=True)
    new_BT = new_PV[list(prompts), list(tokens)][:, None]
    old_BT = torch.tensor(np.log(sampler_PV))[list(prompts), list(tokens)][:, None]
    policy_loss(
        config,
        PolicyLogprobs(new_BT, old_BT, old_BT),
        torch.zeros_like(new_BT),
        torch.tensor(advantages, dtype=torch.float64),
        torch.tensor(list(found.values()), dtype=torch.float64),
        torch.ones_like(new_BT, dtype=torch.bool),
    ).loss.backward()
    assert policy_PV.grad is not None
    gradient: np.ndarray = policy_PV.grad.numpy()
    return gradient


def probabilities(logits_PV: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.exp(logits_PV) / np.exp(logits_PV).sum(axis=1, keepdims=True)
    return found


def success_probabilities(logits_PV: np.ndarray) -> np.ndarray:
    found: np.ndarray = probabilities(logits_PV)[:, list(CORRECT)].sum(axis=1, keepdims=True)
    return found


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


@pytest.mark.parametrize("scaling", get_args(Scaling))
@settings(max_examples=3, phases=[Phase.generate])
@given(first=logits, second=logits, alpha=st.floats(0, 1))
def test_alpha_changes_the_weight_of_a_prompt_and_not_its_direction(
    scaling: Scaling, first: list[float], second: list[float], alpha: float
) -> None:
    logits_PV = np.array([first, second])
    plain_PV, weighted_PV = (
        expected_gradient(logits_PV, ObjectiveConfig(name="hpo", alpha=value, advantage_scaling=scaling))
        for value in (1.0, alpha)
    )
    p_P1 = success_probabilities(logits_PV)
    np.testing.assert_allclose(weighted_PV, ((1 - p_P1) + alpha * p_P1) * plain_PV, rtol=1e-9, atol=1e-12)
    assert (np.abs(plain_PV).max(axis=1) > 1e-4).all()


@settings(max_examples=3, phases=[Phase.generate])
@given(first=logits, second=logits)
def test_an_adaptive_alpha_keeps_the_direction_too(first: list[float], second: list[float]) -> None:
    """The batch has 1 to 5 correct responses, so α is not constant."""
    logits_PV = np.array([first, second])
    plain_PV = expected_gradient(logits_PV, ObjectiveConfig(name="hpo", alpha=1))
    adaptive_PV = expected_gradient(logits_PV, ObjectiveConfig(name="a_hpo", alpha_min=0.1))
    p_P1 = success_probabilities(logits_PV)
    for plain, adaptive, p in zip(plain_PV, adaptive_PV, p_P1[:, 0], strict=True):
        assert cosine(plain, adaptive) == pytest.approx(1, abs=1e-12)
        assert (1 - p) + 0.1 * p <= np.linalg.norm(adaptive) / np.linalg.norm(plain) <= 1 + 1e-12


def test_alpha_changes_the_direction_where_the_samples_are_another_policys() -> None:
    logits_PV, older_PV = np.array([[0.0, 0.1, -0.1]]), np.array([[0.0, -0.5, 0.5]])
    plain, weighted = (
        expected_gradient(logits_PV, ObjectiveConfig(name="hpo", alpha=alpha), older_PV)[0]
        for alpha in (1.0, 0.1)
    )
    assert cosine(plain, weighted) < 0.99
