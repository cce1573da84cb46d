"""The loss: each objective against its formula written out, the clip by hand, and what the loss must not depend on."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cluster.config import ObjectiveConfig, ObjectiveName
from cluster.contracts import ScoredGroup
from learner.advantages import STD_EPSILON
from learner.batching import EMPTY, MicroBatch, Packing, shard
from learner.logprobs import TokenBatch, response_logprobs
from learner.objective_table import OBJECTIVES, Objective, resolve
from learner.objectives import PolicyLoss, policy_loss, truncated_importance_weights
from learner.policy import Policy
from learner.weighing import Row, WeighedBatch
from learner.weighing import weigh as weigh_under_limit
from tests.builders import make_group, make_prompt, make_response, tiny_llama

GRPO = ObjectiveConfig(name="grpo")
HPO_ONE = ObjectiveConfig(name="hpo", alpha=1)
HPO = ObjectiveConfig(name="hpo", alpha=0.6)
A_HPO = ObjectiveConfig(name="a_hpo")
MAX_RESPONSE_TOKENS = 12


def weigh(groups: Sequence[ScoredGroup], objective: ObjectiveConfig) -> WeighedBatch:
    return weigh_under_limit(groups, objective, MAX_RESPONSE_TOKENS)


@dataclass(frozen=True)
class Batch:
    """Scored groups, and for every response, by the number that is its first token, log π_old and log π_θ."""

    groups: list[ScoredGroup]
    old: dict[int, Tensor]
    new: dict[int, Tensor]

    @classmethod
    def draw(cls, seed: int, prompts: int = 3, size: int = 4, spread: float = 0.4) -> Batch:
        """`spread` is the deviation of the log-ratios: 0 is on-policy."""
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, 7, (prompts, size))
        rewards = (rng.random((prompts, size)) < 0.4).astype(float)
        number = itertools.count()
        groups, old, new = [], {}, {}
        for p in range(prompts):
            responses = []
            for g in range(size):
                i, length = next(number), int(lengths[p, g])
                responses.append(make_response([i] * length))
                old[i] = torch.from_numpy(-rng.exponential(1.0, length))
                new[i] = (old[i] + torch.from_numpy(rng.normal(0, spread, length))).requires_grad_()
            groups.append(make_group(rewards[p].tolist(), responses))
        return cls(groups, old, new)

    def loss(self, objective: ObjectiveConfig) -> Tensor:
        """What the learner computes, in one micro-batch."""
        rows = weigh(self.groups, objective).rows
        if not rows:
            return torch.zeros((), dtype=torch.float64, requires_grad=True)
        numbers = [int(row.response_token_ids[0]) for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        new_BT = pad([self.new[i] for i in numbers], batch_first=True)
        return policy_loss(
            resolve(objective),
            new_BT,
            pad([self.old[i] for i in numbers], batch_first=True),
            torch.tensor([row.advantage for row in rows], dtype=torch.float64),
            torch.tensor([row.scale for row in rows], dtype=torch.float64),
            pad([torch.ones(len(self.new[i]), dtype=torch.bool) for i in numbers], batch_first=True),
        ).loss

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """By response; zeros for those that the loss does not look at."""
        leaves = list(self.new.values())
        return list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))

    def responses(self, divided: bool = True) -> list[tuple[Tensor, Tensor, float]]:
        """Log π_θ, log π_old and the plain advantage of every response, computed apart from the code under test."""
        found = []
        for group in self.groups:
            rewards = torch.tensor([verdict.reward for verdict in group.verdicts], dtype=torch.float64)
            advantages = rewards - rewards.mean()
            if divided:
                advantages = advantages / (rewards.std() + STD_EPSILON)
            for response, advantage in zip(group.responses, advantages.tolist(), strict=True):
                i = int(response.token_ids[0])
                found.append((self.new[i], self.old[i], advantage if rewards.std() > 0 else 0.0))
        return found


def surrogates(new: Tensor, old: Tensor, advantage: float, low: float = 0.2, high: float = 0.2) -> Tensor:
    """PPO's, for the tokens of one response."""
    ratio = torch.exp(new - old)
    clipped = torch.clip(ratio, 1 - low, 1 + high)
    return torch.minimum(ratio * advantage, clipped * advantage)


def grpo_loss(batch: Batch) -> Tensor:
    """The mean over responses of the mean over their tokens."""
    return -torch.stack([surrogates(*response).mean() for response in batch.responses()]).mean()


def dr_grpo_loss(batch: Batch) -> Tensor:
    """Neither a deviation nor a length that was sampled divides anything."""
    responses = batch.responses(divided=False)
    return -torch.cat([surrogates(*r) for r in responses]).sum() / (len(responses) * MAX_RESPONSE_TOKENS)


def dapo_loss(batch: Batch) -> Tensor:
    """Token-mean aggregation, every token of the batch weighs the same; more room above than below."""
    return -torch.cat([surrogates(*response, low=0.2, high=0.28) for response in batch.responses()]).mean()


def gspo_loss(batch: Batch) -> Tensor:
    """One ratio and one clip per response."""
    found = []
    for new, old, advantage in batch.responses():
        ratio = torch.exp(new - old).prod() ** (1 / len(new))
        found.append(torch.minimum(ratio * advantage, torch.clip(ratio, 1 - 3e-4, 1 + 4e-4) * advantage))
    return -torch.stack(found).mean()


def sapo_loss(batch: Batch) -> Tensor:
    found = []
    for new, old, advantage in batch.responses():
        tau = 1.0 if advantage > 0 else 1.05
        gate = 1 / (1 + torch.exp(-tau * (torch.exp(new - old) - 1)))
        found.append((4 / tau * gate * advantage).mean())
    return -torch.stack(found).mean()


def cispo_loss(batch: Batch) -> Tensor:
    """REINFORCE, with the truncated ratio as a weight that carries no gradient."""
    weighted = [
        torch.exp(new.detach() - old).clip(max=5.0) * advantage * new
        for new, old, advantage in batch.responses()
    ]
    return -torch.cat(weighted).mean()


def hysteretic_loss(batch: Batch, alpha: float) -> Tensor:
    """As the method has it: L̄ the mean length, N responses."""
    responses = batch.responses()
    mean_length = sum(len(new) for new, *_ in responses) / len(responses)
    total = torch.zeros((), dtype=torch.float64)
    for new, old, advantage in responses:
        weight = 1.0 if advantage >= 0 else alpha
        total = total + surrogates(new, old, weight * advantage).sum() / mean_length
    return -total / len(responses)


def hpo_loss(batch: Batch) -> Tensor:
    return hysteretic_loss(batch, HPO.alpha)


def a_hpo_loss(batch: Batch) -> Tensor:
    """α from the counts."""
    positive = sum(advantage > 0 for *_, advantage in batch.responses())
    negative = sum(advantage < 0 for *_, advantage in batch.responses())
    return hysteretic_loss(batch, 1.0 if negative == 0 else min(max(positive / negative, 0.1), 1.0))


FORMULAS: dict[str, tuple[ObjectiveConfig, Callable[[Batch], Tensor]]] = {
    "grpo": (GRPO, grpo_loss),
    "dr_grpo": (ObjectiveConfig(name="dr_grpo"), dr_grpo_loss),
    "dapo": (ObjectiveConfig(name="dapo"), dapo_loss),
    "gspo": (ObjectiveConfig(name="gspo"), gspo_loss),
    "sapo": (ObjectiveConfig(name="sapo"), sapo_loss),
    "cispo": (ObjectiveConfig(name="cispo"), cispo_loss),
    "hpo": (HPO, hpo_loss),
    "a_hpo": (A_HPO, a_hpo_loss),
}


def policy_gradient_loss(batch: Batch) -> Tensor:
    """REINFORCE with the group's advantages: no ratio, no clip."""
    return -torch.stack([(advantage * new).mean() for new, _, advantage in batch.responses()]).mean()


def assert_gradients_equal(batch: Batch, ours: Tensor, expected: Tensor) -> None:
    for gradient, wanted in zip(batch.gradients(ours), batch.gradients(expected), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([5e-4, 0.4, 1.2]))
def test_objectives_are_their_formulas(name: str, seed: int, spread: float) -> None:
    """Within all bounds, beyond some, beyond most."""
    objective, written_out = FORMULAS[name]
    batch = Batch.draw(seed, spread=spread)
    ours, expected = batch.loss(objective), written_out(batch)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
    assert_gradients_equal(batch, ours, expected)


@given(seed=st.integers(0, 10**6))
def test_hpo_with_alpha_1_is_dapo_with_a_symmetric_clip(seed: int) -> None:
    batch = Batch.draw(seed)
    ours, expected = batch.loss(HPO_ONE), batch.loss(ObjectiveConfig(name="dapo", clip_high=0.2))
    assert ours.item() == expected.item()
    assert_gradients_equal(batch, ours, expected)


@pytest.mark.parametrize("name", ["grpo", "gspo", "sapo"])
@given(seed=st.integers(0, 10**6))
def test_on_policy_these_have_the_policy_gradient(name: ObjectiveName, seed: int) -> None:
    """And so the same one: a comparison of them with one step per batch compares nothing."""
    batch = Batch.draw(seed, spread=0.0)
    assert_gradients_equal(batch, batch.loss(ObjectiveConfig(name=name)), policy_gradient_loss(batch))


@given(ratio=st.floats(0.3, 3), advantage=st.floats(-3, 3), factor=st.floats(0, 5))
def test_the_surrogate_is_positively_homogeneous(ratio: float, advantage: float, factor: float) -> None:
    """So scaling A⁻ by α before the clip, or the loss of these responses after it, is the same."""
    assert loss_of_one_token(ratio, factor * advantage).item() == pytest.approx(
        factor * loss_of_one_token(ratio, advantage).item(), abs=1e-12
    )


def loss_of_one_token(
    ratio: float | Tensor, advantage: float, low: float = 0.2, high: float = 0.2, scale: float = 1.0
) -> Tensor:
    return one_token(replace(OBJECTIVES["grpo"], clip_low=low, clip_high=high), ratio, advantage, scale).loss


def one_token(
    objective: Objective, ratio: float | Tensor, advantage: float, scale: float = 1.0
) -> PolicyLoss:
    ratio = torch.as_tensor(ratio, dtype=torch.float64)
    return policy_loss(
        objective,
        ratio.log().reshape(1, 1),
        torch.zeros(1, 1, dtype=torch.float64),
        torch.tensor([advantage], dtype=torch.float64),
        torch.tensor([scale], dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.bool),
    )


@pytest.mark.parametrize(
    ("advantage", "ratio", "surrogate", "slope", "clipped"),
    [
        (1.0, 1.00, 1.00, 1.0, (0, 0)),
        (1.0, 1.25, 1.25, 1.0, (0, 0)),
        (1.0, 1.50, 1.28, 0.0, (0, 1)),  # good enough already
        (1.0, 0.50, 0.50, 1.0, (0, 0)),  # the minimum keeps pulling back what went the wrong way
        (2.0, 1.50, 2.56, 0.0, (0, 1)),
        (-1.0, 1.00, -1.00, -1.0, (0, 0)),
        (-1.0, 0.85, -0.85, -1.0, (0, 0)),
        (-1.0, 0.50, -0.80, 0.0, (1, 0)),  # bad enough already
        (-1.0, 1.50, -1.50, -1.0, (0, 0)),
        (-2.0, 0.50, -1.60, 0.0, (1, 0)),
        (0.0, 9.00, 0.00, 0.0, (0, 0)),
    ],
)
def test_the_clip_by_hand(
    advantage: float, ratio: float, surrogate: float, slope: float, clipped: tuple[int, int]
) -> None:
    """ε_low 0.2, ε_high 0.28. `slope` is d surrogate / d ratio."""
    leaf = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    result = one_token(OBJECTIVES["dapo"], leaf, advantage, scale=0.5)
    assert result.loss.item() == pytest.approx(-0.5 * surrogate)
    (gradient,) = torch.autograd.grad(result.loss, leaf)
    assert gradient.item() == pytest.approx(-0.5 * slope)
    assert (result.clipped_low_tokens.item(), result.clipped_high_tokens.item()) == clipped


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize(
    ("name", "ratio", "slope", "clipped"),
    [
        ("sapo", 1e-9, 0.777, (0, 0)),  # 4 σ'(τ (r − 1)): 0.786 for τ = 1, 0.768 for 1.05
        ("sapo", 1.0, 1.00, (0, 0)),
        ("sapo", 2.0, 0.777, (0, 0)),
        ("cispo", 0.01, 1.0, (0, 0)),  # weight / ratio: the slope of weight × log ratio
        ("cispo", 4.99, 1.0, (0, 0)),
        ("cispo", 10.0, 5 / 10, (0, 1)),
    ],
)
def test_bounds_that_leave_a_gradient(
    name: ObjectiveName, ratio: float, slope: float, clipped: tuple[int, int], advantage: float
) -> None:
    """For either sign of the advantage."""
    leaf = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    result = one_token(OBJECTIVES[name], leaf, advantage)
    (gradient,) = torch.autograd.grad(result.loss, leaf)
    assert gradient.item() == pytest.approx(-advantage * slope, rel=0.02)
    assert (result.clipped_low_tokens.item(), result.clipped_high_tokens.item()) == clipped


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
    result = policy_loss(OBJECTIVES["gspo"], log_ratio, zeros, torch.tensor(advantages), torch.ones(2), mask)
    assert (result.clipped_low_tokens.item(), result.clipped_high_tokens.item()) == clipped


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_what_padding_holds_reaches_neither_loss_nor_gradient(rubbish: float, name: ObjectiveName) -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    clean = torch.tensor([[-1.0, -2.0, 0.0], [-0.5, 0.0, 0.0]])

    def gradient_and_loss(padding: float) -> tuple[Tensor, Tensor]:
        dirty = torch.where(mask, clean, padding)
        logprobs = dirty.clone().requires_grad_()
        weights = truncated_importance_weights(dirty, dirty * 0.9, mask, cap=2.0)
        advantages, scales = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.25])
        result = policy_loss(
            OBJECTIVES[name], logprobs, dirty * 0.95, advantages, scales, mask, token_weights_BT=weights
        )
        result.loss.backward()
        if name != "gspo":  # whose bounds are narrower than what is in here
            assert result.clipped_low_tokens + result.clipped_high_tokens == 0
        assert logprobs.grad is not None
        return logprobs.grad, result.loss

    gradient, loss = gradient_and_loss(rubbish)
    assert torch.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()
    clean_gradient, clean_loss = gradient_and_loss(0.0)
    assert torch.equal(loss, clean_loss)
    assert torch.equal(gradient, clean_gradient)


def test_importance_weights_are_the_truncated_ratio_and_carry_no_gradient() -> None:
    ratio = torch.tensor([[0.25, 1.0, 1.9, 2.1, 50.0, 50.0]], dtype=torch.float64)
    old = ratio.log().requires_grad_()
    mask = torch.tensor([[True] * 5 + [False]])
    weights = truncated_importance_weights(old, torch.zeros_like(ratio), mask, cap=2.0)
    assert weights[0, :5].tolist() == pytest.approx([0.25, 1.0, 1.9, 2.0, 2.0])
    assert not weights.requires_grad


def test_importance_weights_multiply_each_tokens_surrogate() -> None:
    batch = Batch.draw(1, prompts=1, size=2)
    new, old = batch.new[0][None], batch.old[0][None]
    weights = torch.linspace(0.1, 2, new.shape[1], dtype=torch.float64)[None]
    one = torch.ones(1, dtype=torch.float64)
    mask = torch.ones_like(new, dtype=torch.bool)
    result = policy_loss(OBJECTIVES["grpo"], new, old, -one, one, mask, weights)
    assert result.loss.item() == pytest.approx(-(weights[0] * surrogates(new[0], old[0], -1.0)).sum().item())


# --- What the loss must not depend on: everything below runs a model.

CAP = 1.2


@pytest.fixture(scope="module")
def model() -> Policy:
    return Policy(tiny_llama())


@pytest.fixture(scope="module")
def groups(model: Any) -> list[ScoredGroup]:
    """Prompts and responses of many lengths; the sampler's log-probabilities are near the model's, some beyond the
    clip."""
    rng = np.random.default_rng(0)
    found = []
    for p in range(5):
        prompt = make_prompt(f"train/0/{p}", rng.integers(0, 32, rng.integers(1, 9)).tolist())
        responses = []
        for _ in range(4):
            ids = rng.integers(0, 32, rng.integers(1, 12))
            row = Row(np.array(prompt.token_ids), ids, np.zeros(len(ids), np.float32), 1.0, 1.0)
            with torch.no_grad():
                exact = response_logprobs(model, TokenBatch.from_rows([row], torch.device("cpu")), 1.0)[0][0]
            responses.append(
                make_response(ids.tolist(), (exact.numpy() + rng.normal(0, 0.3, len(ids))).tolist())
            )
        rewards = [1.0, 1.0, 1.0, 1.0] if p == 4 else (rng.random(4) < 0.4).astype(float).tolist()
        found.append(make_group(rewards, responses, prompt))
    return found


def rank_loss(model: Any, micro_batches: Sequence[MicroBatch], name: ObjectiveName) -> Tensor:
    """As a learner rank sums it, with the sampler's log-probabilities as π_old and weights as of a third policy."""
    losses = []
    for micro_batch in micro_batches:
        batch = TokenBatch.from_micro_batch(micro_batch, torch.device("cpu"))
        logprobs, _ = response_logprobs(model, batch, temperature=1.0)
        old, mask = batch.sampler_logprobs_BT, batch.response_mask_BT
        weights = truncated_importance_weights(logprobs.detach(), old, mask, CAP)
        result = policy_loss(
            OBJECTIVES[name], logprobs, old, batch.advantages_B, batch.scales_B, mask, weights
        )
        losses.append(result.loss)
    return torch.stack(losses).sum()


def each_alone(rows: Sequence[Row]) -> MicroBatch:
    return tuple((row,) for row in rows)


def loss_and_gradient(
    model: Any, ranks: Sequence[Sequence[MicroBatch]], name: ObjectiveName = "a_hpo"
) -> tuple[float, Tensor]:
    """Summed over ranks."""
    loss = torch.stack([rank_loss(model, micro_batches, name) for micro_batches in ranks]).sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss.item(), torch.cat([gradient.flatten() for gradient in gradients])


def assert_same(ours: tuple[float, Tensor], expected: tuple[float, Tensor]) -> None:
    assert expected[1].norm() > 0.01, "otherwise this test shows nothing"
    assert ours[0] == pytest.approx(expected[0], rel=1e-5)
    assert (ours[1] - expected[1]).norm() < 1e-5 * expected[1].norm()


@pytest.fixture(scope="module")
def whole(model: Any, groups: list[ScoredGroup]) -> tuple[float, Tensor]:
    """The whole batch in one micro-batch."""
    return loss_and_gradient(model, [[each_alone(weigh(groups, A_HPO).rows)]])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_does_not_depend_on_ranks_or_micro_batches(
    model: Any, groups: list[ScoredGroup], name: ObjectiveName
) -> None:
    rows = weigh(groups, ObjectiveConfig(name=name)).rows
    whole = loss_and_gradient(model, [[each_alone(rows)]], name)
    for ranks, micro_batch_tokens in [(1, 1), (1, 40), (2, 10**6), (3, 60), (30, 25)]:
        packing = Packing(micro_batch_tokens, "off")
        assert_same(loss_and_gradient(model, shard(rows, ranks, packing), name), whole)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_does_not_depend_on_the_order_of_groups_or_responses(
    model: Any, groups: list[ScoredGroup], name: ObjectiveName
) -> None:
    objective = ObjectiveConfig(name=name)
    order = random.Random(0)
    shuffled = []
    for group in order.sample(groups, len(groups)):
        pairs = list(zip(group.responses, group.verdicts, strict=True))
        responses, verdicts = zip(*order.sample(pairs, len(pairs)), strict=True)
        shuffled.append(replace(group, group=replace(group.group, responses=responses), verdicts=verdicts))
    whole = loss_and_gradient(model, [[each_alone(weigh(groups, objective).rows)]], name)
    assert_same(loss_and_gradient(model, [[each_alone(weigh(shuffled, objective).rows)]], name), whole)


def test_rows_without_an_advantage_may_be_left_out(
    model: Any, groups: list[ScoredGroup], whole: tuple[float, Tensor]
) -> None:
    """With them in it the batch computes more and learns the same."""
    weighed = weigh(groups, A_HPO)
    left_out = [
        Row(
            np.array(group.prompt.token_ids),
            response.token_ids,
            response.logprobs,
            0.0,
            weighed.rows[0].scale,
        )
        for group in groups
        for response, verdict in zip(group.responses, group.verdicts, strict=True)
        if len({verdict.reward for verdict in group.verdicts}) == 1
    ]
    assert left_out
    assert len(left_out) + len(weighed.rows) == sum(len(group.responses) for group in groups)
    assert_same(loss_and_gradient(model, [[each_alone([*weighed.rows, *left_out])]]), whole)


def test_rows_without_an_advantage_count_in_the_denominator(
    model: Any, groups: list[ScoredGroup], whole: tuple[float, Tensor]
) -> None:
    """A batch without its all-right group has fewer tokens, and each of them weighs more in proportion."""
    *varied, all_right = groups
    lengths = [sum(len(response.token_ids) for response in group.responses) for group in groups]
    assert len({verdict.reward for verdict in all_right.verdicts}) == 1
    loss, gradient = loss_and_gradient(model, [[each_alone(weigh(varied, A_HPO).rows)]])
    share = sum(lengths[:-1]) / sum(lengths)
    assert_same((loss * share, gradient * share), whole)


def test_an_empty_micro_batch_adds_nothing(
    model: Any, whole: tuple[float, Tensor], groups: list[ScoredGroup]
) -> None:
    loss, gradient = loss_and_gradient(model, [[EMPTY]])
    assert loss == 0
    assert (gradient == 0).all()
    assert_same(loss_and_gradient(model, [[EMPTY, each_alone(weigh(groups, A_HPO).rows), EMPTY]]), whole)
