"""Each objective against its formula written out, and the laws that connect the objectives."""

from __future__ import annotations

import itertools
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
from learner.objective.objectives import OBJECTIVES, Bounds, Objective, Surrogate, Tokens
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


def hysteretic(
    batch: list[Drawn], alpha: float, surrogate: Callable[[Tensor, float], Tensor] = clipped
) -> Tensor:
    """(1/N) Σ_i (1/L̄) Σ_t, with the mean length L̄."""
    mean_length = count_tokens(batch) / len(batch)
    terms = [surrogate(ratios(r), r.advantage if r.advantage >= 0 else alpha * r.advantage) for r in batch]
    return -total([term / mean_length for term in terms]) / len(batch)


def hpo(batch: list[Drawn]) -> Tensor:
    return hysteretic(batch, alpha=0.6)


def adaptive_alpha(batch: list[Drawn]) -> float:
    positive = sum(r.advantage > 1e-9 for r in batch)
    negative = sum(r.advantage < -1e-9 for r in batch)
    return 1.0 if negative == 0 else min(max(positive / negative, 0.1), 1.0)


def a_hpo(batch: list[Drawn]) -> Tensor:
    return hysteretic(batch, adaptive_alpha(batch))


def maxrl_advantage(r: Drawn) -> float:
    mean = sum(r.of_group) / len(r.of_group)
    return (r.reward - mean) / mean if mean > 0 else 0.0


def maxrl(batch: list[Drawn]) -> Tensor:
    return -total([clipped(ratios(r), maxrl_advantage(r)) for r in batch]) / count_tokens(batch)


def rloo(batch: list[Drawn]) -> Tensor:
    return -torch.stack([clipped(torch.exp(r.new.sum() - r.old.sum()), r.over_others) for r in batch]).mean()


def whitened(batch: list[Drawn]) -> list[float]:
    """The centered rewards, normalized by mean and standard deviation of them all."""
    centered = torch.tensor([r.centered for r in batch], dtype=torch.float64)
    found: list[float] = ((centered - centered.mean()) / (centered.std() + 1e-4)).tolist()
    return found


def reinforce_pp(batch: list[Drawn]) -> Tensor:
    terms = [clipped(ratios(r), advantage) for r, advantage in zip(batch, whitened(batch), strict=True)]
    return -total(terms) / count_tokens(batch)


def dual_clipped(ratio: Tensor, advantage: float) -> Tensor:
    """PPO's surrogate, which is at least 3 A for a negative A."""
    plain = clipped(ratio, advantage)
    return plain if advantage >= 0 else torch.clip(plain, min=3 * advantage)


def grpo_dual_clip(batch: list[Drawn]) -> Tensor:
    return -torch.stack([dual_clipped(ratios(r), r.advantage).mean() for r in batch]).mean()


def hpo_dual_clip(batch: list[Drawn]) -> Tensor:
    return hysteretic(batch, 0.6, dual_clipped)


def a_hpo_dual_clip(batch: list[Drawn]) -> Tensor:
    return hysteretic(batch, adaptive_alpha(batch), dual_clipped)


FORMULAS: dict[str, Callable[[list[Drawn]], Tensor]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "sapo": sapo,
    "cispo": cispo,
    "hpo": hpo,
    "a_hpo": a_hpo,
    "maxrl": maxrl,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "grpo_dual_clip": grpo_dual_clip,
    "hpo_dual_clip": hpo_dual_clip,
    "a_hpo_dual_clip": a_hpo_dual_clip,
}


def test_every_objective_is_tested() -> None:
    assert OBJECTIVES.keys() == FORMULAS.keys()


@pytest.mark.parametrize("spread", [0.0, 5e-4, 0.4, 1.5])
@pytest.mark.parametrize("name", FORMULAS)
@given(seed=SEEDS)
def test_objectives_are_their_formulas(name: str, spread: float, seed: int) -> None:
    """With the defaults of the method's table; on-policy, and with ratios within and beyond all clips."""
    config = config_of(name, alpha=0.6 if OBJECTIVES[name].uses_alpha else 1.0)
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


def assert_same_gradient(batch: DrawnBatch, ours: Tensor, wanted: Tensor) -> None:
    for gradient, other in zip(batch.gradients(ours), batch.gradients(wanted), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["grpo", "gspo", "sapo", "grpo_dual_clip"])
@given(seed=SEEDS)
def test_on_policy_means_of_means_have_the_policy_gradient(name: str, seed: int) -> None:
    """REINFORCE with the group's advantages: no ratio, no clip, no gate."""
    batch = DrawnBatch.draw(seed, spread=0.0)
    reinforce = -torch.stack([(r.advantage * r.new).mean() for r in batch.responses()]).mean()
    assert_same_gradient(batch, batch.loss(config_of(name)).loss, reinforce)


@pytest.mark.parametrize("name", ["dapo", "cispo", "hpo", "hpo_dual_clip"])
@given(seed=SEEDS)
def test_on_policy_token_means_have_one_gradient_too(name: str, seed: int) -> None:
    batch = DrawnBatch.draw(seed, spread=0.0)
    reinforce = -total([r.advantage * r.new for r in batch.responses()]) / count_tokens(batch.responses())
    assert_same_gradient(batch, batch.loss(config_of(name, alpha=1.0)).loss, reinforce)


@given(seed=SEEDS)
def test_on_policy_rloo_is_reinforce_with_the_log_probability_of_whole_responses(seed: int) -> None:
    batch = DrawnBatch.draw(seed, spread=0.0)
    reinforce = -torch.stack([r.over_others * r.new.sum() for r in batch.responses()]).mean()
    assert_same_gradient(batch, batch.loss(config_of("rloo")).loss, reinforce)


@given(seed=SEEDS)
def test_on_policy_maxrl_averages_over_correct_responses(seed: int) -> None:
    """With binary rewards the gradient of a group is the mean over its correct responses minus the mean over all: the
    estimator of the gradient of log pass rate, and its control variate (MaxRL, algorithm 1)."""
    batch = DrawnBatch.draw(seed, spread=0.0)
    responses = batch.responses()
    size = len(responses[0].of_group)
    terms = []
    for group in (responses[i : i + size] for i in range(0, len(responses), size)):
        if correct := [r.new.sum() for r in group if r.reward == 1]:
            terms.append(torch.stack(correct).mean() - torch.stack([r.new.sum() for r in group]).mean())
    maximized = torch.stack(terms).sum() * size if terms else torch.zeros((), requires_grad=True)
    assert_same_gradient(batch, batch.loss(config_of("maxrl")).loss, -maximized / count_tokens(responses))


@given(seed=SEEDS)
def test_on_policy_reinforce_pp_is_reinforce_with_whitened_advantages(seed: int) -> None:
    batch = DrawnBatch.draw(seed, spread=0.0)
    responses = batch.responses()
    terms = [a * r.new for a, r in zip(whitened(responses), responses, strict=True)]
    assert_same_gradient(
        batch, batch.loss(config_of("reinforce_pp")).loss, -total(terms) / count_tokens(responses)
    )


@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_objectives_have_one_gradient_on_policy_if_they_say_so(alpha: float) -> None:
    """`on_policy_gradient` states for each pair whether the gradients at r = 1 are equal."""
    batch = DrawnBatch.draw(1, prompts=4, size=6, spread=0.0)
    found = {}
    for name, objective in OBJECTIVES.items():
        config = config_of(name, alpha=alpha if objective.uses_alpha else 1.0)
        gradient = torch.cat(batch.gradients(batch.loss(config).loss))
        found[name] = (objective.on_policy_gradient(config), gradient)
    for (name, (key, one)), (other, (other_key, two)) in itertools.combinations(found.items(), 2):
        assert (key == other_key) == torch.allclose(one, two, rtol=1e-9, atol=1e-12), (name, other)


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


# --- Adding an objective.


def test_an_entry_of_the_table_is_all_that_an_objective_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is valid in a configuration, and batch and loss are its formula: REINFORCE with a constant scale."""

    def log_probability(tokens: Tokens, bounds: Bounds) -> Surrogate:
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
