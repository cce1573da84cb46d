"""The loss does not depend on ranks, micro-batches, order, samples left out, or whether a group shares its prompt.

This holds for every objective and option.

Everything here runs a model, and compares loss and gradient with those of the whole batch in one micro-batch.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.core.config import LearnerConfig, ObjectiveConfig
from cluster.core.types import FinishReason, ScoredGroup, TrainingSample
from learner.engine.statistics import merge
from learner.model.batching import EMPTY, MicroBatch, Packing, shard
from learner.model.policy import TokenBatch, response_logprobs
from learner.model.policy_setup import prepare_policy
from learner.objective.loss import PolicyLogprobs, policy_loss
from learner.objective.objectives import OBJECTIVES
from learner.objective.training_batch import build_training_batch
from tests.builders import make_group, make_prompt, make_response, tiny_llama

MAX_TOKENS = 12
CPU = torch.device("cpu")
OPTIONS: dict[str, dict[str, Any]] = {
    "hysteresis": {"name": "hpo", "alpha": 0.3},
    "batch scaling": {"name": "grpo", "advantage_scaling": "batch"},
    "token weights": {"importance_cap": 1.2},
    "sequence weights": {"importance_cap": 1.2, "importance_level": "sequence"},
    "k1": {"kl_coefficient": 0.1, "kl_estimator": "k1"},
    "k2": {"kl_coefficient": 0.1, "kl_estimator": "k2"},
    "k3": {"kl_coefficient": 0.1, "kl_estimator": "k3"},
    "entropy bonus": {"entropy_coefficient": 0.05},
    "cut-off masked": {"mask_truncated": True},
    "over-long penalty": {"overlong_tokens": 6},
    "all at once": {
        "name": "a_hpo",
        "overlong_tokens": 6,
        "mask_truncated": True,
        "importance_cap": 1.2,
        "entropy_coefficient": 0.05,
        "kl_coefficient": 0.1,
    },
}
CONFIGS = {name: {"name": name} for name in OBJECTIVES} | OPTIONS


@pytest.fixture(scope="module")
def model() -> Any:
    policy, packing = prepare_policy(tiny_llama(), LearnerConfig(), max_context_tokens=None)
    assert packing.prefix_sharing == "auto"
    return policy


@pytest.fixture(scope="module")
def reference(model: Any) -> Any:
    """A model near the model."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter += 0.05 * parameter.std() * noise
    return other


@pytest.fixture(scope="module")
def groups(model: Any) -> list[ScoredGroup]:
    """Prompts and responses of many lengths, some truncated, one not scored; one group is all correct. The sampler's
    log-probabilities are near the model's, some beyond the clip, some missing."""
    rng = np.random.default_rng(0)
    found = []
    for p in range(5):
        prompt = make_prompt(f"train/0/{p}", rng.integers(0, 32, rng.integers(1, 9)).tolist())
        responses = []
        for _ in range(4):
            ids = rng.integers(0, 32, rng.integers(1, MAX_TOKENS))
            sample = TrainingSample(np.array(prompt.token_ids), ids, np.zeros(len(ids), np.float32), 1.0, 1.0)
            with torch.no_grad():
                exact = response_logprobs(model, TokenBatch.from_samples([sample], CPU), 1.0)[0][0]
            logprobs = exact.numpy() + rng.normal(0, 0.3, len(ids))
            logprobs[rng.random(len(ids)) < 0.05] = np.nan
            finish_reason = cast(FinishReason, "length" if rng.random() < 0.2 else "stop")
            responses.append(make_response(ids.tolist(), logprobs.tolist(), finish_reason=finish_reason))
        rewards: list[float | None] = (
            [1.0, 1.0, 1.0, 1.0] if p == 4 else [float(right) for right in rng.random(4) < 0.4]
        )
        if p == 0:
            rewards[0] = None
        found.append(make_group(rewards, responses, prompt))
    responses = [response for group in found[:4] for response in group.responses]
    assert any(response.finish_reason == "length" for response in responses)
    assert any(np.isnan(response.logprobs).any() for response in responses)
    return found


def each_alone(samples: Sequence[TrainingSample]) -> MicroBatch:
    return tuple((sample,) for sample in samples)


class Learner:
    """A learner's ranks in one process: what each does with its micro-batches, and the sum over them."""

    def __init__(self, model: Any, reference: Any, **settings: Any) -> None:
        self._model = model
        self._reference = reference
        self.config = ObjectiveConfig.model_validate(settings)

    def samples(self, groups: Sequence[ScoredGroup]) -> tuple[TrainingSample, ...]:
        return build_training_batch(groups, self.config, MAX_TOKENS).samples

    def learn(self, ranks: Sequence[Sequence[MicroBatch]]) -> tuple[float, Tensor, dict[str, float]]:
        """Loss, gradient and statistics. The sampler's log-probabilities stand for those of π_old, the reference's for
        those of μ where there are any, so that all ratios are there."""
        losses, statistics = [], []
        for micro_batches in ranks:
            for micro_batch in micro_batches:
                batch = TokenBatch.from_micro_batch(micro_batch, CPU)
                new, entropy = response_logprobs(self._model, batch, 0.9, entropy_gradient=True)
                with torch.no_grad():
                    other, _ = response_logprobs(self._reference, batch, 0.9)
                old = batch.sampler_logprobs_BT
                sampler = torch.where(old.isnan(), old, other)
                logprobs = PolicyLogprobs(
                    new, old.nan_to_num(), sampler, other if self.config.kl_coefficient else None
                )
                result = policy_loss(
                    self.config, logprobs, entropy, batch.advantages_B, batch.scales_B, batch.response_mask_BT
                )
                losses.append(result.loss)
                statistics.append(result.statistics)
        loss = torch.stack(losses).sum()
        gradients = torch.autograd.grad(loss, list(self._model.parameters()))
        return loss.item(), torch.cat([gradient.flatten() for gradient in gradients]), merge(statistics)


def assert_same(
    ours: tuple[float, Tensor, dict[str, float]],
    expected: tuple[float, Tensor, dict[str, float]],
    tolerance: float = 1e-6,
) -> None:
    """Loss, gradient and statistics. The model is in float64, but norms its activations in float32."""
    assert expected[1].norm() > 0.01, "otherwise this test shows nothing"
    # Losses are sums of terms that may cancel.
    assert ours[0] == pytest.approx(expected[0], rel=tolerance, abs=tolerance / 10)
    assert (ours[1] - expected[1]).norm() < tolerance * expected[1].norm()
    assert ours[2] == pytest.approx(expected[2], rel=10 * tolerance, abs=tolerance)


@pytest.fixture(scope="module", params=CONFIGS)
def learner(model: Any, reference: Any, request: pytest.FixtureRequest) -> Learner:
    return Learner(model, reference, **CONFIGS[request.param])


@pytest.fixture(scope="module")
def whole(learner: Learner, groups: list[ScoredGroup]) -> tuple[float, Tensor, dict[str, float]]:
    """The whole batch in one micro-batch."""
    return learner.learn([[each_alone(learner.samples(groups))]])


@pytest.mark.parametrize(
    ("ranks", "packing"), [(1, Packing(40, "off")), (2, Packing(80, "on")), (4, Packing(10**6))]
)
def test_the_loss_does_not_depend_on_ranks_or_micro_batches_or_sharing(
    learner: Learner, groups: list[ScoredGroup], whole: Any, ranks: int, packing: Packing
) -> None:
    assert_same(learner.learn(shard(learner.samples(groups), ranks, packing)), whole)


@pytest.mark.parametrize(
    ("ranks", "packing"), [(1, Packing(1, "off")), (30, Packing(25, "off")), (1, Packing(10**6, "on"))]
)
def test_nor_where_each_response_is_alone_or_most_ranks_have_none_or_all_is_one(
    model: Any, reference: Any, groups: list[ScoredGroup], ranks: int, packing: Packing
) -> None:
    learner = Learner(model, reference, **CONFIGS["all at once"])
    samples = learner.samples(groups)
    assert_same(learner.learn(shard(samples, ranks, packing)), learner.learn([[each_alone(samples)]]))


@pytest.mark.parametrize("name", ["a_hpo", "gspo", "all at once"])
def test_nor_in_single_precision(model: Any, reference: Any, groups: list[ScoredGroup], name: str) -> None:
    learner = Learner(*(copy.deepcopy(policy).float() for policy in (model, reference)), **CONFIGS[name])
    samples = learner.samples(groups)
    assert_same(
        learner.learn(shard(samples, 2, Packing(60, "on"))),
        learner.learn([[each_alone(samples)]]),
        tolerance=1e-5,
    )


def test_the_loss_does_not_depend_on_the_order_of_groups_or_responses(
    learner: Learner, groups: list[ScoredGroup], whole: Any
) -> None:
    order = random.Random(0)
    shuffled = []
    for group in order.sample(groups, len(groups)):
        pairs = list(zip(group.responses, group.verdicts, strict=True))
        responses, verdicts = zip(*order.sample(pairs, len(pairs)), strict=True)
        shuffled.append(replace(group, group=replace(group.group, responses=responses), verdicts=verdicts))
    assert_same(learner.learn([[each_alone(learner.samples(shuffled))]]), whole)


def test_an_empty_micro_batch_adds_nothing(learner: Learner, groups: list[ScoredGroup], whole: Any) -> None:
    loss, gradient, statistics = learner.learn([[EMPTY]])
    assert loss == 0
    assert (gradient == 0).all()
    assert statistics["tokens"] == 0
    assert_same(learner.learn([[EMPTY, each_alone(learner.samples(groups)), EMPTY]]), whole)


def left_out(learner: Learner, groups: list[ScoredGroup]) -> list[TrainingSample]:
    """The responses that `build_training_batch` leaves out, as samples without an advantage."""
    samples = learner.samples(groups)
    there = {id(sample.response_token_ids) for sample in samples}
    return [
        TrainingSample(
            np.array(group.prompt.token_ids), response.token_ids, response.logprobs, 0.0, samples[0].scale
        )
        for group in groups
        for response in group.responses
        if id(response.token_ids) not in there
    ]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_samples_without_an_advantage_may_be_left_out(
    model: Any, reference: Any, groups: list[ScoredGroup], name: str
) -> None:
    """With them in it the batch computes more and learns the same."""
    learner = Learner(model, reference, name=name)
    samples = learner.samples(groups)
    others = left_out(learner, groups)
    assert others
    assert len(others) + len(samples) == sum(len(group.responses) for group in groups)
    loss, gradient, _ = learner.learn([[each_alone([*samples, *others])]])
    expected = learner.learn([[each_alone(samples)]])
    assert_same((loss, gradient, expected[2]), expected)


@pytest.mark.parametrize(
    ("name", "measure"), [("a_hpo", "tokens"), ("dapo", "tokens"), ("grpo", "responses")]
)
def test_samples_without_an_advantage_count_in_the_denominator(
    model: Any, reference: Any, groups: list[ScoredGroup], name: str, measure: str
) -> None:
    """A batch without its all-correct group has fewer tokens, and each token has a proportionally larger weight."""
    learner = Learner(model, reference, name=name)
    *varied, all_right = groups
    assert len({verdict.reward for verdict in all_right.verdicts}) == 1
    sizes = [sum(len(response.token_ids) for response in group.responses) for group in groups]
    fraction = sum(sizes[:-1]) / sum(sizes) if measure == "tokens" else 4 / 5
    loss, gradient, statistics = learner.learn([[each_alone(learner.samples(varied))]])
    expected = learner.learn([[each_alone(learner.samples(groups))]])
    assert_same(
        (loss * fraction, gradient * fraction, statistics | {"loss": loss * fraction}),
        expected,
        tolerance=1e-6,
    )
