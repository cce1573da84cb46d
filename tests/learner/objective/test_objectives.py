"""Each objective against its formula written out, the clips by hand, and the laws that connect the objectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cluster.configuration.objective_checks import check_objective
from cluster.core.config import ObjectiveConfig, RunConfig
from learner.objective.loss import PolicyLogprobs, policy_loss
from learner.objective.objectives import OBJECTIVES, Objective, Surrogate, Tokens
from tests.learner.drawn_batch import MAX_TOKENS, Drawn, DrawnBatch, assert_same_loss

SEEDS = st.integers(0, 10**6)


def config_of(name: str, **settings: Any) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"name": name, **settings})


# --- The formulas, as the method states them.


def clipped(ratio: Tensor, advantage: float, low: float = 0.2, high: float = 0.2) -> Tensor:
    """PPO's surrogate."""
    return torch.minimum(ratio * advantage, torch.clip(ratio, 1 - low, 1 + high) * advantage)


def ratios(response: Drawn) -> Tensor:
    return torch.exp(response.new - response.old)


def total(terms: list[Tensor]) -> Tensor:
    return torch.stack([term.sum() for term in terms]).sum()


def count_tokens(batch: list[Drawn]) -> int:
    return sum(len(response) for response in batch)


def grpo(batch: list[Drawn]) -> Tensor:
    return -torch.stack([clipped(ratios(r), r.advantage).mean() for r in batch]).mean()


def dr_grpo(batch: list[Drawn]) -> Tensor:
    return -total([clipped(ratios(r), r.centered) for r in batch]) / (len(batch) * MAX_TOKENS)


def dapo(batch: list[Drawn], high: float = 0.28) -> Tensor:
    return -total([clipped(ratios(r), r.advantage, high=high) for r in batch]) / count_tokens(batch)


def gspo(batch: list[Drawn]) -> Tensor:
    terms = []
    for r in batch:
        sequence_ratio = torch.exp((r.new - r.old).sum() / len(r))
        terms.append(clipped(sequence_ratio, r.advantage, 3e-4, 4e-4))
    return -torch.stack(terms).mean()


def sapo(batch: list[Drawn]) -> Tensor:
    terms = []
    for r in batch:
        tau = 1.0 if r.advantage > 0 else 1.05
        terms.append((4 / tau * torch.sigmoid(tau * (ratios(r) - 1)) * r.advantage).mean())
    return -torch.stack(terms).mean()


def cispo(batch: list[Drawn]) -> Tensor:
    weights = [torch.clip(ratios(r), max=5.0).detach() for r in batch]
    terms = [weight * r.advantage * r.new for weight, r in zip(weights, batch, strict=True)]
    return -total(terms) / count_tokens(batch)


def hysteretic(batch: list[Drawn], alpha: float) -> Tensor:
    """(1/N) Σ_i (1/L̄) Σ_t, with the mean length L̄."""
    mean_length = count_tokens(batch) / len(batch)
    terms = [clipped(ratios(r), r.advantage if r.advantage >= 0 else alpha * r.advantage) for r in batch]
    return -total([term / mean_length for term in terms]) / len(batch)


def hpo(batch: list[Drawn]) -> Tensor:
    return hysteretic(batch, alpha=0.6)


def adaptive_alpha(batch: list[Drawn]) -> float:
    positive = sum(r.advantage > 1e-9 for r in batch)
    negative = sum(r.advantage < -1e-9 for r in batch)
    return 1.0 if negative == 0 else min(max(positive / negative, 0.1), 1.0)


def a_hpo(batch: list[Drawn]) -> Tensor:
    return hysteretic(batch, adaptive_alpha(batch))


FORMULAS: dict[str, Callable[[list[Drawn]], Tensor]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "sapo": sapo,
    "cispo": cispo,
    "hpo": hpo,
    "a_hpo": a_hpo,
}


def test_every_objective_is_tested() -> None:
    assert OBJECTIVES.keys() == FORMULAS.keys()


@pytest.mark.parametrize("spread", [0.0, 5e-4, 0.4, 1.5])
@pytest.mark.parametrize("name", FORMULAS)
@given(seed=SEEDS)
def test_objectives_are_their_formulas(name: str, spread: float, seed: int) -> None:
    """With the defaults of the method's table; on-policy, and with ratios within and beyond all clips."""
    config = config_of(name, alpha=0.6 if name == "hpo" else 1.0)
    assert_same_loss(DrawnBatch.draw(seed, spread=spread), config, FORMULAS[name])


# --- What connects them.


@given(seed=SEEDS)
def test_hpo_with_alpha_1_is_token_mean_aggregation_with_a_symmetric_clip(seed: int) -> None:
    """DAPO's loss, in value and gradient, and its formula: 1/(N L̄) = 1/Σ|τ|."""
    batch = DrawnBatch.draw(seed)
    ours, theirs = (
        batch.loss(config_of("hpo", alpha=1.0)).loss,
        batch.loss(config_of("dapo", clip_high=0.2)).loss,
    )
    assert torch.equal(ours, theirs)
    for gradient, other in zip(batch.gradients(ours), batch.gradients(theirs), strict=True):
        assert torch.equal(gradient, other)
    assert_same_loss(batch, config_of("hpo", alpha=1.0), lambda responses: dapo(responses, high=0.2))


@pytest.mark.parametrize("name", ["grpo", "gspo", "sapo"])
@given(seed=SEEDS)
def test_on_policy_grpo_gspo_and_sapo_have_the_policy_gradient(name: str, seed: int) -> None:
    """REINFORCE with the group's advantages: no ratio, no clip, no gate."""
    batch = DrawnBatch.draw(seed, spread=0.0)
    reinforce = -torch.stack([(r.advantage * r.new).mean() for r in batch.responses()]).mean()
    ours = batch.gradients(batch.loss(config_of(name)).loss)
    for gradient, wanted in zip(ours, batch.gradients(reinforce), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["dapo", "cispo", "hpo"])
@given(seed=SEEDS)
def test_on_policy_token_means_have_one_gradient_too(name: str, seed: int) -> None:
    batch = DrawnBatch.draw(seed, spread=0.0)
    reinforce = -total([r.advantage * r.new for r in batch.responses()]) / count_tokens(batch.responses())
    ours = batch.gradients(batch.loss(config_of(name, alpha=1.0)).loss)
    for gradient, wanted in zip(ours, batch.gradients(reinforce), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


def test_off_policy_they_all_differ() -> None:
    """Otherwise the laws above would say nothing about the formulas."""
    batch = DrawnBatch.draw(1, prompts=4, size=8, spread=0.8)
    losses = {name: round(batch.loss(config_of(name)).loss.item(), 9) for name in OBJECTIVES}
    assert len(set(losses.values())) == len(losses), losses


@given(seed=SEEDS, alpha=st.floats(0, 1))
def test_alpha_scales_the_loss_of_the_negative_side(seed: int, alpha: float) -> None:
    """The surrogate is positively homogeneous in A: scaling A⁻ before the clip, or its loss after it, is the same."""
    batch = DrawnBatch.draw(seed)
    none, some, all_ = (batch.loss(config_of("hpo", alpha=share)).loss.item() for share in (0.0, alpha, 1.0))
    assert some == pytest.approx((1 - alpha) * none + alpha * all_, rel=1e-9, abs=1e-12)


# --- The clips by hand.


def one_token(
    name: str, ratio: float, advantage: float, **settings: Any
) -> tuple[float, float, dict[str, float]]:
    """Surrogate, its slope d / d log π_θ, and the statistics, of one token with scale 0.5."""
    new = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    zeros = torch.zeros(1, 1, dtype=torch.float64)
    result = policy_loss(
        config_of(name, **settings),
        PolicyLogprobs(new, zeros, zeros),
        zeros,
        torch.tensor([advantage], dtype=torch.float64),
        torch.tensor([0.5], dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.bool),
    )
    (gradient,) = torch.autograd.grad(result.loss, new)
    return -2 * result.loss.item(), -2 * gradient.item(), result.statistics


@pytest.mark.parametrize(
    ("advantage", "ratio", "surrogate", "slope", "clips"),
    [
        (1.0, 1.00, 1.00, 1.00, (0, 0)),
        (1.0, 1.25, 1.25, 1.25, (0, 0)),
        (1.0, 1.50, 1.28, 0.00, (0, 1)),  # good enough already
        (1.0, 0.50, 0.50, 0.50, (0, 0)),  # the minimum keeps pulling back what went the wrong way
        (2.0, 1.50, 2.56, 0.00, (0, 1)),
        (-1.0, 1.00, -1.00, -1.00, (0, 0)),
        (-1.0, 0.85, -0.85, -0.85, (0, 0)),
        (-1.0, 0.50, -0.80, 0.00, (1, 0)),  # bad enough already
        (-1.0, 1.50, -1.50, -1.50, (0, 0)),
        (-2.0, 0.50, -1.60, 0.00, (1, 0)),
        (0.0, 9.00, 0.00, 0.00, (0, 0)),
    ],
)
@pytest.mark.parametrize("name", ["dapo", "gspo"])
def test_the_clip_by_hand(
    name: str, advantage: float, ratio: float, surrogate: float, slope: float, clips: tuple[int, int]
) -> None:
    """ε_low 0.2, ε_high 0.28. Of one token, the sequence's ratio is the token's."""
    value, gradient, statistics = one_token(name, ratio, advantage, clip_low=0.2, clip_high=0.28)
    assert value == pytest.approx(surrogate)
    assert gradient == pytest.approx(slope)
    assert (statistics["clipped_low"], statistics["clipped_high"]) == clips


@pytest.mark.parametrize(
    ("ratio", "weight", "capped"), [(0.01, 0.01, 0), (1.0, 1.0, 0), (4.0, 4.0, 0), (9.0, 5.0, 1)]
)
@pytest.mark.parametrize("advantage", [1.0, -2.0])
def test_cispo_caps_the_weight_and_keeps_the_gradient(
    ratio: float, weight: float, capped: int, advantage: float
) -> None:
    _, slope, statistics = one_token("cispo", ratio, advantage)
    assert slope == pytest.approx(weight * advantage)
    assert (statistics["clipped_low"], statistics["clipped_high"]) == (0, capped)


@given(ratio=st.floats(0.05, 8), advantage=st.floats(0.1, 2))
def test_sapo_lets_go_of_negative_advantages_sooner(ratio: float, advantage: float) -> None:
    """Both gates have slope 1 at r = 1 and fall from there on either side, the negative one faster."""
    slopes = {
        sign: one_token("sapo", ratio, sign * advantage)[1] / (sign * advantage * ratio) for sign in (1, -1)
    }
    assert slopes[-1] <= slopes[1] <= 1 + 1e-12
    assert one_token("sapo", 1.0, advantage)[1] == pytest.approx(advantage)
    assert one_token("sapo", 1.0, -advantage)[1] == pytest.approx(-advantage)


@pytest.mark.parametrize(
    ("advantages", "clipped"), [((1.0, 1.0), (0, 2)), ((-1.0, -1.0), (3, 0)), ((-1.0, 1.0), (0, 0))]
)
def test_a_clipped_sequence_counts_with_all_its_tokens(
    advantages: tuple[float, float], clipped: tuple[int, int]
) -> None:
    """The first has two tokens and a ratio above the bounds, though one token's is below; the second three, and
    below."""
    log_ratio = torch.tensor([[0.3, -0.1, 0.0], [-0.1, -0.1, -0.1]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    zeros = torch.zeros_like(log_ratio)
    statistics = policy_loss(
        config_of("gspo"),
        PolicyLogprobs(log_ratio, zeros, zeros),
        zeros,
        torch.tensor(advantages),
        torch.ones(2),
        mask,
    ).statistics
    assert (statistics["clipped_low"], statistics["clipped_high"]) == clipped


# --- Adding an objective.


def test_an_entry_of_the_table_is_all_that_an_objective_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is valid in a configuration, and batch and loss are its formula: REINFORCE with a constant scale."""

    def log_probability(tokens: Tokens, clip_low: float, clip_high: float) -> Surrogate:
        unclipped_BT = torch.zeros_like(tokens.mask_BT)
        values_BT = tokens.advantages_B1 * tokens.logprobs_BT
        return Surrogate(values_BT, torch.ones_like(tokens.logprobs_BT), unclipped_BT, unclipped_BT)

    def one_half(lengths: np.ndarray, max_response_tokens: int) -> np.ndarray:
        return np.full(lengths.shape, 0.5)

    assert [problem.where for problem in check_objective(RunConfig(objective=config_of("mine")))] == [
        "objective.name"
    ]
    monkeypatch.setitem(OBJECTIVES, "mine", Objective(log_probability, one_half, advantage_scaling="none"))
    assert list(check_objective(RunConfig(objective=config_of("mine")))) == []
    assert_same_loss(
        DrawnBatch.draw(0), config_of("mine"), lambda batch: -0.5 * total([r.centered * r.new for r in batch])
    )
