"""The batch is weighed once, globally, before it is split: advantages, α and denominators become two numbers per
response.

After this, learner ranks only sum `scale_i × Σ_t surrogate(ratio_it, advantage_i)`. Nothing in a rank depends on
how many ranks there are or how the batch was cut into micro-batches, so neither does the loss. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cluster.config import ObjectiveConfig
from cluster.contracts import ScoredGroup
from learner.advantages import group_advantages, hysteretic, sign_shares
from learner.objective_table import resolve


@dataclass(frozen=True, slots=True)
class Row:
    """One response, ready to be learned from."""

    prompt_token_ids: np.ndarray  # int64 [S]
    response_token_ids: np.ndarray  # int64 [T]
    sampler_logprobs: np.ndarray  # float32 [T]
    advantage: float
    """w_i A_i."""
    scale: float
    """What each of its tokens' surrogates is multiplied by: 1 / (N · L̄) for HPO."""

    @property
    def tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.response_token_ids)


@dataclass(frozen=True, slots=True)
class WeighedBatch:
    """What one optimiser step sees.

    `rows` leaves out responses with advantage 0: their gradient is exactly 0. They have been counted in N, L̄ and α.
    """

    rows: tuple[Row, ...]
    metrics: dict[str, float] = field(default_factory=dict)


def weigh(groups: Sequence[ScoredGroup], config: ObjectiveConfig, max_response_tokens: int) -> WeighedBatch:
    """Turn the scored groups of one optimiser batch, all with G responses, into weighed rows.

    `max_response_tokens` is the limit under which they were sampled.
    """
    objective = resolve(config)
    rewards = np.array([[verdict.reward for verdict in group.verdicts] for group in groups])
    valid = np.array(
        [[verdict.outcome in ("right", "wrong") for verdict in group.verdicts] for group in groups]
    )
    lengths = np.array([[len(response.token_ids) for response in group.responses] for group in groups])

    plain = group_advantages(rewards, valid, objective.advantage_scaling)
    shares = sign_shares(plain)
    alpha = objective.alpha_rule(shares, config)
    advantages = hysteretic(plain, alpha)
    scales = objective.scale_rule(lengths, max_response_tokens)

    rows = tuple(
        Row(
            prompt_token_ids=np.asarray(group.prompt.token_ids, dtype=np.int64),
            response_token_ids=response.token_ids,
            sampler_logprobs=response.logprobs,
            advantage=float(advantages[p, g]),
            scale=float(scales[p, g]),
        )
        for p, group in enumerate(groups)
        for g, response in enumerate(group.responses)
        if advantages[p, g] != 0
    )
    metrics = {
        "objective/alpha": alpha,
        "objective/positive_share": shares.positive,
        "objective/negative_share": shares.negative,
        "objective/push_positive": float(advantages[advantages > 0].sum() / advantages.size),
        "objective/push_negative": float(-advantages[advantages < 0].sum() / advantages.size),
        "reward/zero_variance_share": float((plain == 0).all(axis=1).mean()),
    }
    return WeighedBatch(rows=rows, metrics=metrics)
