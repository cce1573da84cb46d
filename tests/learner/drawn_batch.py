"""A random batch of scored groups with log-probabilities under every policy, in float64, for tests of the loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cluster.core.config import ObjectiveConfig
from cluster.core.types import ScoredGroup
from learner.objective.loss import PolicyLogprobs, PolicyLoss, policy_loss
from learner.objective.training_batch import build_training_batch
from tests.builders import make_group, make_response

MAX_TOKENS = 8
"""rollout.max_response_tokens of these batches."""


@dataclass(frozen=True)
class Drawn:
    """One response as the test of a formula uses it: values computed independently of the code under test."""

    new: Tensor
    """log π_θ, with gradient; all [T]."""
    old: Tensor
    sampler: Tensor
    reference: Tensor
    entropy: Tensor
    advantage: float
    """(R − mean) / (std + 1e-4) of its group."""
    centered: float
    """R − mean of its group."""
    reward: float
    of_group: tuple[float, ...]
    """The rewards of its group, with its own."""

    @property
    def over_others(self) -> float:
        """R − mean of the other responses of its group."""
        return self.reward - (sum(self.of_group) - self.reward) / (len(self.of_group) - 1)

    def __len__(self) -> int:
        return len(self.new)


@dataclass(frozen=True)
class DrawnBatch:
    """Scored groups, and the log-probabilities and entropies of each response by its number (its first token)."""

    groups: list[ScoredGroup]
    new: dict[int, Tensor]
    old: dict[int, Tensor]
    sampler: dict[int, Tensor]
    reference: dict[int, Tensor]
    entropy: dict[int, Tensor]

    @classmethod
    def draw(cls, seed: int, prompts: int = 3, size: int = 4, spread: float = 0.4) -> DrawnBatch:
        """Draw a batch. `spread` is the standard deviation of the log-ratios between the policies; 0 is on-policy."""
        rng = np.random.default_rng(seed)
        batch = cls([], {}, {}, {}, {}, {})
        number = itertools.count()
        for _ in range(prompts):
            responses = []
            for _ in range(size):
                i, length = next(number), int(rng.integers(1, MAX_TOKENS))
                responses.append(make_response([i] * length))

                def near(center: Tensor, length: int = length) -> Tensor:
                    return center + torch.from_numpy(rng.normal(0, spread, length))

                batch.old[i] = torch.from_numpy(-rng.exponential(1.0, length))
                batch.new[i] = near(batch.old[i]).requires_grad_()
                batch.sampler[i] = near(batch.old[i])
                batch.reference[i] = near(batch.old[i])
                batch.entropy[i] = torch.from_numpy(rng.exponential(1.0, length))
            rewards = (rng.random(size) < 0.4).astype(float)
            batch.groups.append(make_group(rewards.tolist(), responses))
        return batch

    def truncated(self, which: Callable[[int], bool]) -> DrawnBatch:
        """Return the same batch with the responses truncated whose number of tokens `which` selects."""

        def cut(group: ScoredGroup) -> ScoredGroup:
            responses = tuple(
                replace(response, finish_reason="length" if which(len(response.token_ids)) else "stop")
                for response in group.responses
            )
            return replace(group, group=replace(group.group, responses=responses))

        return replace(self, groups=[cut(group) for group in self.groups])

    def loss(self, config: ObjectiveConfig) -> PolicyLoss:
        """Compute the learner's loss, in one micro-batch."""
        samples = build_training_batch(self.groups, config, MAX_TOKENS).samples
        numbers = [int(sample.response_token_ids[0]) for sample in samples]
        if not samples:
            return PolicyLoss(torch.zeros((), dtype=torch.float64, requires_grad=True), {})

        def padded(of: dict[int, Tensor]) -> Tensor:
            return torch.nn.utils.rnn.pad_sequence([of[i] for i in numbers], batch_first=True)

        return policy_loss(
            config,
            PolicyLogprobs(
                padded(self.new),
                padded(self.old),
                padded(self.sampler),
                padded(self.reference) if config.kl_coefficient else None,
            ),
            padded(self.entropy),
            torch.tensor([sample.advantage for sample in samples], dtype=torch.float64),
            torch.tensor([sample.scale for sample in samples], dtype=torch.float64),
            padded({i: torch.ones(len(self.new[i]), dtype=torch.bool) for i in numbers}),
        )

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Return the gradient by response, with zeros for responses that the loss does not use."""
        leaves = list(self.new.values())
        return list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))

    def responses(self) -> list[Drawn]:
        """Return all responses with advantages computed from their definition."""
        found = []
        for group in self.groups:
            rewards = torch.tensor([verdict.reward for verdict in group.verdicts], dtype=torch.float64)
            centered = rewards - rewards.mean()
            of_group = tuple(rewards.tolist())
            for response, reward, value in zip(group.responses, of_group, centered.tolist(), strict=True):
                i = int(response.token_ids[0])
                advantage = value / (rewards.std().item() + 1e-4)
                policies = (self.new[i], self.old[i], self.sampler[i], self.reference[i], self.entropy[i])
                found.append(Drawn(*policies, advantage, value, reward, of_group))
        return found


def assert_same_loss(
    batch: DrawnBatch,
    config: ObjectiveConfig,
    expected: Callable[[list[Drawn]], Tensor],
    tolerance: float = 1e-9,
) -> None:
    """Assert that loss and gradient equal those of the formula `expected`."""
    ours, wanted = batch.loss(config).loss, expected(batch.responses())
    torch.testing.assert_close(ours, wanted, rtol=tolerance, atol=tolerance / 10)
    for gradient, other in zip(batch.gradients(ours), batch.gradients(wanted), strict=True):
        torch.testing.assert_close(gradient, other, rtol=tolerance, atol=tolerance / 10)
