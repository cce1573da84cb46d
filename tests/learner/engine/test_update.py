"""The update of one rank with a plain PyTorch engine: its optimizer steps, and the policies that they start from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig, ObjectiveConfig
from cluster.core.types import TrainingSample
from learner.engine import update
from learner.engine.update import PolicyUpdate
from learner.model.batching import MicroBatch, Packing, shard
from learner.model.policy import Policy, TokenBatch, response_logprobs
from learner.objective.loss import PolicyLogprobs, policy_loss
from tests.builders import tiny_llama

CPU = torch.device("cpu")
TEMPERATURE = 0.8


class PlainEngine(nn.Module):
    """The part of DeepSpeed's engine that the update uses, with the behavior of stage 0."""

    device = CPU
    global_steps = global_samples = skipped_steps = 0
    applied = True

    def __init__(self) -> None:
        super().__init__()
        self.module = Policy(tiny_llama())
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1)
        self.lr_scheduler: Any = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)
        self.backwards = 0

    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        self.backwards += 1
        loss.backward()

    def step(self) -> None:
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        self._norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.global_steps += 1

    def was_step_applied(self) -> bool:
        return self.applied

    def get_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def get_global_grad_norm(self) -> Tensor:
        return self._norm

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.module.parameters()])


def mini_batch(seed: int) -> list[MicroBatch]:
    rng = np.random.default_rng(seed)
    samples = [
        TrainingSample(
            rng.integers(0, 32, 4),
            rng.integers(0, 32, length),
            np.full(length, -3.0, np.float32),
            advantage,
            0.1,
        )
        for length, advantage in zip(rng.integers(1, 6, 6), rng.normal(size=6), strict=True)
    ]
    (micro_batches,) = shard(samples, 1, Packing(20, "off"))
    assert len(micro_batches) > 1
    return micro_batches


def learner_options(objective: ObjectiveConfig, **learner: Any) -> LearnerOptions:
    return LearnerOptions("", "float32", TEMPERATURE, 0, LearnerConfig(**learner), objective, (), 1)


def losses(
    engine: PlainEngine, micro_batches: list[MicroBatch], objective: ObjectiveConfig, old: list[Tensor]
) -> list[Tensor]:
    found = []
    for micro_batch, old_BT in zip(micro_batches, old, strict=True):
        batch = TokenBatch.from_micro_batch(micro_batch, CPU)
        new_BT, entropy_BT = response_logprobs(engine, batch, TEMPERATURE, entropy_gradient=True)
        policies = PolicyLogprobs(new_BT, old_BT, batch.sampler_logprobs_BT)
        weights = batch.advantages_B, batch.scales_B, batch.response_mask_BT
        found.append(policy_loss(objective, policies, entropy_BT, *weights).loss)
    return found


def frozen(engine: PlainEngine, micro_batches: list[MicroBatch]) -> list[Tensor]:
    batches = [TokenBatch.from_micro_batch(micro_batch, CPU) for micro_batch in micro_batches]
    with torch.no_grad():
        return [response_logprobs(engine, batch, TEMPERATURE)[0] for batch in batches]


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_step_of_a_batch_has_the_policy_that_it_began_with(epochs: int) -> None:
    """The same written out: first all old log-probabilities, then the mini-batches one after the other, per epoch."""
    objective = ObjectiveConfig(name="grpo", entropy_coefficient=0.05)
    work = [mini_batch(0), mini_batch(1)]
    by_hand = PlainEngine()
    old = [frozen(by_hand, micro_batches) for micro_batches in work]
    for _ in range(epochs):
        for micro_batches, old_logprobs in zip(work, old, strict=True):
            torch.stack(losses(by_hand, micro_batches, objective, old_logprobs)).sum().backward()
            by_hand.step()

    engine: Any = PlainEngine()
    statistics = PolicyUpdate(engine, learner_options(objective, epochs_per_batch=epochs)).learn(work)
    torch.testing.assert_close(engine.weights(), by_hand.weights(), rtol=1e-9, atol=1e-12)
    assert [step["learning_rate"] for step in statistics] == [0.1 * 0.5**step for step in range(2 * epochs)]
    assert statistics[0]["min_ratio"] == statistics[0]["max_ratio"] == 1, "where it begins, it is that policy"
    assert all(step["min_ratio"] < 1 < step["max_ratio"] for step in statistics[1:])


def test_replays_are_learned_from_and_not_compared_with_their_sampler() -> None:
    """Their marks change the gap alone: it is the one of the other samples, in whatever micro-batches they are."""

    def learned(work: list[MicroBatch]) -> tuple[Tensor, dict[str, float]]:
        engine: Any = PlainEngine()
        (statistics,) = PolicyUpdate(engine, learner_options(ObjectiveConfig(importance_cap=2.0))).learn(
            [work]
        )
        return engine.weights(), statistics

    samples = [sample for micro_batch in mini_batch(0) for bundle in micro_batch for sample in bundle]
    old = np.array([-3.0, -9.0], np.float32)
    marked = [
        replace(
            sample,
            is_replay=number % 2 == 1,
            sampler_logprobs=np.full_like(sample.sampler_logprobs, old[number % 2]),
        )
        for number, sample in enumerate(samples)
    ]
    with_marks, without, fresh = (
        learned(shard(each, 1, Packing(20, "off"))[0])
        for each in (marked, [replace(sample, is_replay=False) for sample in marked], marked[::2])
    )
    assert torch.equal(with_marks[0], without[0])
    gap = {"compared", "logprob_gap", "max_logprob_gap"}
    assert with_marks[1]["compared"] == fresh[1]["tokens"]
    assert with_marks[1]["logprob_gap"] == pytest.approx(fresh[1]["logprob_gap"])
    assert with_marks[1]["max_logprob_gap"] == pytest.approx(fresh[1]["max_logprob_gap"])
    assert without[1]["max_logprob_gap"] > with_marks[1]["max_logprob_gap"]
    others = with_marks[1].keys() - gap
    assert {name: with_marks[1][name] for name in others} == {name: without[1][name] for name in others}


def test_the_reference_is_asked_once_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TokenBatch] = []

    class Reference:
        def logprobs(self, batch: TokenBatch, temperature: float) -> Tensor:
            assert temperature == TEMPERATURE
            asked.append(batch)
            return torch.full(batch.response_mask_BT.shape, -2.0)

    monkeypatch.setattr(update, "build_reference", lambda engine, options: Reference())
    engine: Any = PlainEngine()
    work = [mini_batch(0), mini_batch(1)]
    options = learner_options(ObjectiveConfig(kl_coefficient=1e-9), epochs_per_batch=2)
    statistics = PolicyUpdate(engine, options).learn(work)
    assert len(asked) == len(work[0]) + len(work[1])
    assert all(step["kl_to_reference"] > 0 for step in statistics)


def test_what_each_side_pulls_is_measured_and_leaves_no_trace() -> None:
    """Only the surrogate is measured, without the entropy, and only in the first step."""
    objective = ObjectiveConfig(name="grpo", entropy_coefficient=0.05)
    work = [mini_batch(0), mini_batch(1)]
    plain: Any = PlainEngine()
    expected = PolicyUpdate(plain, learner_options(objective)).learn(work)
    engine: Any = PlainEngine()
    first, second = PolicyUpdate(engine, learner_options(objective, measure_gradient_fraction=True)).learn(
        work
    )
    assert engine.backwards == len(work[0]) * 3 + len(work[1])
    torch.testing.assert_close(engine.weights(), plain.weights(), rtol=0, atol=0)
    assert (engine.global_steps, engine.get_lr()) == (plain.global_steps, plain.get_lr())

    untouched = PlainEngine()
    for side, sign in (("positive", 1), ("negative", -1)):
        samples = [
            sample for micro_batch in work[0] for (sample,) in micro_batch if sign * sample.advantage > 0
        ]
        one_sided: list[MicroBatch] = [((sample,),) for sample in samples]
        surrogate = objective.model_copy(update={"entropy_coefficient": 0.0})
        loss = torch.stack(losses(untouched, one_sided, surrogate, frozen(untouched, one_sided))).sum()
        gradients = torch.autograd.grad(loss, list(untouched.module.parameters()))
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
        assert norm > 0.01
        assert first.pop(f"{side}_grad_norm") == pytest.approx(norm, rel=1e-6)
    assert [first, second] == expected
