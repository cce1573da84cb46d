"""The options of every objective: importance weights, divergence and entropy; and the statistics of the loss."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cluster.core.config import ObjectiveConfig
from learner.objective.loss import PolicyLogprobs, importance_weights, kl_estimate, policy_loss
from learner.objective.objectives import OBJECTIVES
from tests.learner.drawn_batch import Drawn, DrawnBatch, assert_same_loss
from tests.learner.objective.test_objectives import clipped, count_tokens, ratios, total

SEEDS = st.integers(0, 10**6)


def config_of(name: str = "grpo", **settings: Any) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"name": name, **settings})


def grpo_with(terms: Any) -> Any:
    """Return GRPO's mean over responses of the mean over tokens of `terms(response)`."""
    return lambda batch: -torch.stack([terms(response).mean() for response in batch]).mean()


# --- Importance weights for tokens sampled from another policy.


def token_weighted(r: Drawn) -> Tensor:
    return clipped(ratios(r), r.advantage) * torch.clip(torch.exp(r.old - r.sampler), max=1.5)


def sequence_weighted(r: Drawn) -> Tensor:
    return clipped(ratios(r), r.advantage) * torch.clip(torch.exp((r.old - r.sampler).sum()), max=1.5)


@pytest.mark.parametrize(("level", "terms"), [("token", token_weighted), ("sequence", sequence_weighted)])
@given(seed=SEEDS)
def test_importance_weights_multiply_the_surrogate(level: str, terms: Any, seed: int) -> None:
    config = config_of(importance_cap=1.5, importance_level=level)
    assert_same_loss(DrawnBatch.draw(seed), config, grpo_with(terms))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_importance_weights_are_truncated_and_carry_no_gradient(level: Literal["token", "sequence"]) -> None:
    ratio = torch.tensor([[0.25, 1.0, 1.9, 2.1, 50.0]], dtype=torch.float64)
    old = ratio.log().requires_grad_()
    weights = importance_weights(PolicyLogprobs(old, old, torch.zeros_like(ratio)), 2.0, level)
    expected = [[0.25, 1.0, 1.9, 2.0, 2.0]] if level == "token" else [[2.0]]
    assert weights.tolist() == [pytest.approx(row) for row in expected]
    assert not weights.requires_grad


@pytest.mark.parametrize("name", OBJECTIVES)
def test_where_sampler_and_learner_agree_the_weights_change_nothing(name: str) -> None:
    batch = DrawnBatch.draw(0)
    batch.sampler.update(batch.old)
    plain, weighted = (batch.loss(config_of(name, importance_cap=cap)).loss for cap in (None, 2.0))
    assert torch.equal(plain, weighted)


# --- The divergence from the reference.


def k1(r: Drawn) -> Tensor:
    return r.new - r.reference


def k2(r: Drawn) -> Tensor:
    return (r.new - r.reference) ** 2 / 2


def k3(r: Drawn) -> Tensor:
    return torch.exp(r.reference - r.new) - (r.reference - r.new) - 1


@pytest.mark.parametrize("estimator", [k1, k2, k3], ids=["k1", "k2", "k3"])
@given(seed=SEEDS)
def test_the_divergence_is_added_to_each_token(estimator: Any, seed: int) -> None:
    """This includes responses without an advantage."""
    config = config_of(kl_coefficient=0.3, kl_estimator=estimator.__name__)
    expected = grpo_with(lambda r: clipped(ratios(r), r.advantage) - 0.3 * estimator(r))
    assert_same_loss(DrawnBatch.draw(seed), config, expected)


@given(seed=SEEDS)
def test_the_divergence_is_independent_of_the_surrogate(seed: int) -> None:
    """Here it is one mean over all tokens, and independent of α and importance weights."""
    config = config_of("hpo", alpha=0.0, kl_coefficient=0.3, importance_cap=1.5)

    def expected(batch: list[Drawn]) -> Tensor:
        surrogates = [token_weighted(r) if r.advantage > 0 else 0.0 * r.new for r in batch]
        return -total([s - 0.3 * k3(r) for s, r in zip(surrogates, batch, strict=True)]) / count_tokens(batch)

    assert_same_loss(DrawnBatch.draw(seed), config, expected)


@given(logits=st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=2, max_size=6))
def test_estimators_have_the_divergence_as_their_mean(logits: list[tuple[float, float]]) -> None:
    """The means are over all tokens with their probabilities. k3 is never negative; all are 0 for equal policies."""
    new, reference = torch.tensor(logits, dtype=torch.float64).T.log_softmax(dim=-1)
    divergence = (new.exp() * (new - reference)).sum()
    for estimator in ("k1", "k3"):
        mean = (new.exp() * kl_estimate(new, reference, estimator)).sum()
        assert mean.item() == pytest.approx(divergence.item(), abs=1e-12)
    assert (kl_estimate(new, reference, "k3") >= -1e-15).all()
    assert all((kl_estimate(new, new, estimator) == 0).all() for estimator in ("k1", "k2", "k3"))


def test_the_gradients_of_the_estimators_are_what_the_documentation_says() -> None:
    """The mean gradient over samples is 0 for k1, the divergence's for k2, and the reverse divergence's for k3."""
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-0.5, 0.1, 0.4], dtype=torch.float64).log_softmax(dim=-1)
    new = logits.log_softmax(dim=-1)

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    wanted = {
        "k1": torch.zeros(3, dtype=torch.float64),
        "k2": gradient((new.exp() * (new - reference)).sum()),
        "k3": gradient((reference.exp() * (reference - new)).sum()),
    }
    probability = new.exp().detach()
    estimators: tuple[Literal["k1", "k2", "k3"], ...] = ("k1", "k2", "k3")
    for estimator in estimators:
        sampled = (probability * kl_estimate(new, reference, estimator)).sum()
        torch.testing.assert_close(gradient(sampled), wanted[estimator])
    assert wanted["k2"].norm() > 0.1
    assert wanted["k3"].norm() > 0.1


# --- The entropy bonus.


@given(seed=SEEDS)
def test_the_entropy_of_each_token_is_maximized(seed: int) -> None:
    expected = grpo_with(lambda r: clipped(ratios(r), r.advantage) + 0.1 * r.entropy)
    assert_same_loss(DrawnBatch.draw(seed), config_of(entropy_coefficient=0.1), expected)


def test_the_bonus_reaches_the_entropys_gradient() -> None:
    batch = DrawnBatch.draw(0)
    for entropy in batch.entropy.values():
        entropy.requires_grad_()
    loss = batch.loss(config_of("hpo", entropy_coefficient=0.1)).loss
    for gradient in torch.autograd.grad(loss, list(batch.entropy.values())):
        assert torch.allclose(gradient, torch.full_like(gradient, -0.1 / count_tokens(batch.responses())))


# --- Padding, and tokens that are not counted.


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_padding_holds_reaches_neither_loss_nor_gradient(name: str, rubbish: float) -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    clean = torch.tensor([[-1.0, -2.0, 0.0], [-0.5, 0.0, 0.0]])
    config = config_of(
        name, importance_cap=2.0, importance_level="sequence", kl_coefficient=0.1, entropy_coefficient=0.1
    )

    def result_with(padding: float) -> tuple[Tensor, Tensor, dict[str, float]]:
        dirty = torch.where(mask, clean, padding)
        new = dirty.clone().requires_grad_()
        logprobs = PolicyLogprobs(new, dirty * 0.95, dirty * 0.9, dirty * 0.8)
        advantages, scales = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.25])
        result = policy_loss(config, logprobs, -dirty, advantages, scales, mask)
        result.loss.backward()
        assert new.grad is not None
        return result.loss.detach(), new.grad, result.statistics

    loss, gradient, statistics = result_with(rubbish)
    clean_loss, clean_gradient, clean_statistics = result_with(0.0)
    assert torch.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()
    assert torch.equal(loss, clean_loss)
    assert torch.equal(gradient, clean_gradient)
    assert statistics == clean_statistics


# --- Tokens without a log-probability from the sampler.

EVERYTHING: dict[str, Any] = {
    "importance_cap": 2.0,
    "importance_level": "sequence",
    "kl_coefficient": 0.1,
    "entropy_coefficient": 0.1,
}


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "all options"])
@pytest.mark.parametrize("name", OBJECTIVES)
@given(seed=SEEDS, missing=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_they_are_left_out_of_loss_gradient_and_statistics(
    name: str, options: dict[str, Any], seed: int, missing: float
) -> None:
    """They are treated like padding. One whole response is among them."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(4, 6, generator=generator) < 0.9
    known = torch.rand(4, 6, generator=generator) < 0.7
    known[0] = False
    logprobs = [-torch.rand(4, 6, generator=generator, dtype=torch.float64) for _ in range(4)]
    advantages = torch.tensor([1.0, -1.0, 2.0, -0.5], dtype=torch.float64)
    scales = torch.full((4,), 0.1, dtype=torch.float64)

    def result(sampler: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
        new = logprobs[0].clone().requires_grad_()
        policies = PolicyLogprobs(new, logprobs[1], sampler, logprobs[3])
        found = policy_loss(config_of(name, **options), policies, -logprobs[0], advantages, scales, mask)
        found.loss.backward()
        assert new.grad is not None
        return found.loss.detach(), new.grad, found.statistics

    loss, gradient, statistics = result(torch.where(known, logprobs[2], missing), mask)
    expected_loss, expected_gradient, expected_statistics = result(logprobs[2], mask & known)
    assert torch.equal(loss, expected_loss)
    assert torch.equal(gradient, expected_gradient)
    assert (gradient[~known] == 0).all()
    assert statistics == expected_statistics
    assert all(math.isfinite(value) for value in statistics.values())


# --- The statistics of the loss.


def test_statistics_by_hand() -> None:
    """Two responses, of 2 and 1 tokens; the third has scale 0 and is not counted."""
    ratio = torch.tensor([[2.0, 0.5], [0.5, 1.0], [9.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    old = torch.full_like(ratio, -1.0)
    logprobs = PolicyLogprobs(old + ratio.log(), old, old - 0.25, old + ratio.log() + 1.0)
    entropy = torch.tensor([[0.5, 0.25], [1.0, 7.0], [7.0, 7.0]], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    scales = torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64)
    config = config_of(importance_cap=1.25, kl_coefficient=0.5, kl_estimator="k1")
    statistics = policy_loss(config, logprobs, entropy, advantages, scales, mask).statistics
    weight = 1.25  # min(e^0.25, 1.25)
    assert statistics == pytest.approx(
        {
            "loss": -(0.5 * ((1.2 + 0.5) * weight + 0.5 * 2) + 0.25 * (-0.8 * weight + 0.5)),
            "tokens": 3,
            "entropy": 1.75,
            "clipped_low": 1,
            "clipped_high": 1,
            "ratio": 2 + 0.5 + 0.5,
            "kl_to_old": (2 - 1 - math.log(2)) + 2 * (0.5 - 1 - math.log(0.5)),
            "compared": 3,
            "logprob_gap": 0.75,
            "importance_weight": 3 * weight,
            "capped": 3,
            "kl_to_reference": -3,
            "max_logprob_gap": 0.25,
            "min_ratio": 0.5,
            "max_ratio": 2.0,
        }
    )


def test_replays_are_not_compared_with_the_sampler() -> None:
    """The policy has moved since they were sampled. Nothing else changes: their loss and their weights count."""
    logged = torch.tensor([[-1.0, -1.0], [-9.0, -9.0]], dtype=torch.float64)
    old = torch.full_like(logged, -1.5)
    ones, mask = torch.ones(2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.bool)
    both, fresh = (
        policy_loss(
            config_of(importance_cap=2.0), PolicyLogprobs(old, old, logged), -old, ones, ones, mask, is_replay
        ).statistics
        for is_replay in (None, torch.tensor([False, True]))
    )
    assert (fresh["compared"], fresh["logprob_gap"], fresh["max_logprob_gap"]) == (2, 1.0, 0.5)
    assert (both["compared"], both["logprob_gap"], both["max_logprob_gap"]) == (4, 16.0, 7.5)
    others = fresh.keys() - {"compared", "logprob_gap", "max_logprob_gap"}
    assert {name: fresh[name] for name in others} == {name: both[name] for name in others}


@pytest.mark.parametrize("level", ["token", "sequence"])
@given(seed=SEEDS, cap=st.floats(1, 3))
def test_capped_weights_are_counted_by_token(level: str, seed: int, cap: float) -> None:
    batch = DrawnBatch.draw(seed)
    statistics = batch.loss(config_of("hpo", importance_cap=cap, importance_level=level)).statistics
    capped = 0
    for r in batch.responses():
        log_ratio = r.old - r.sampler
        if level == "sequence":
            log_ratio = log_ratio.sum().expand(len(r))
        capped += int((log_ratio.exp() > cap).sum()) if abs(r.advantage) > 1e-9 else 0
    assert statistics.get("capped", 0) == capped


def test_gspo_reports_the_ratio_that_it_clips() -> None:
    batch = DrawnBatch.draw(3, prompts=4)
    sequence = [
        torch.exp((r.new - r.old).mean()).item() for r in batch.responses() if abs(r.advantage) > 1e-9
    ]
    statistics = batch.loss(config_of("gspo")).statistics
    assert (statistics["min_ratio"], statistics["max_ratio"]) == pytest.approx((min(sequence), max(sequence)))
