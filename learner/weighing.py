"""The batch is weighed once, globally, before it is split: advantages, α and denominators become two numbers per
response.

After this, learner ranks only sum `scale_i × Σ_t surrogate(ratio_it, advantage_i)`, with what the options add to each
token. Nothing in a rank depends on how many ranks there are or how the batch was cut into micro-batches, so neither
does the loss. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cluster.config import ObjectiveConfig
from cluster.contracts import ScoredGroup
from learner.advantages import (
    adaptive_alpha,
    group_advantages,
    hysteretic,
    overlong_penalties,
    sign_shares,
)
from learner.objectives import chosen


@dataclass(frozen=True, slots=True)
class Row:
    """One response, ready to be learned from."""

    prompt_token_ids: np.ndarray  # int64 [S]
    response_token_ids: np.ndarray  # int64 [T]
    sampler_logprobs: np.ndarray  # float32 [T]
    advantage: float
    """w_i A_i."""
    scale: float
    """What each of its tokens is multiplied by: 1 / (N · L̄) for HPO."""

    @property
    def tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.response_token_ids)


@dataclass(frozen=True, slots=True)
class WeighedBatch:
    """What one optimiser step sees.

    `rows` leaves out responses whose gradient is exactly 0: those that are masked and, unless an entropy bonus or a
    divergence acts on every response, those with advantage 0. They have been counted in N, L̄ and α.
    """

    rows: tuple[Row, ...]
    metrics: dict[str, float] = field(default_factory=dict)


def weigh(groups: Sequence[ScoredGroup], config: ObjectiveConfig, max_response_tokens: int) -> WeighedBatch:
    """Turn the scored groups of one optimiser batch, all with G responses, into weighed rows.

    With `mask_cut_off`, responses that were cut off count in their group's mean and deviation, and in N, but not in the
    sums of tokens (all as in TRL); nor on either side for α, since they push neither way (ours).
    """
    objective, settings = chosen(config)
    if not groups:
        return WeighedBatch(rows=(), metrics=_metrics(1.0, np.zeros((1, 1)), zero_variance_share=0.0))
    verdicts = [group.verdicts for group in groups]
    responses = [group.responses for group in groups]
    rewards = np.array([[verdict.reward for verdict in row] for row in verdicts])
    valid = np.array([[verdict.outcome in ("right", "wrong") for verdict in row] for row in verdicts])
    lengths = np.array([[len(response.token_ids) for response in row] for row in responses])
    cut_off = np.array([[response.finish_reason == "length" for response in row] for row in responses])
    masked = cut_off & settings.mask_cut_off

    penalties = overlong_penalties(lengths, max_response_tokens, settings.overlong_tokens)
    assert settings.advantage_scaling is not None
    in_group = group_advantages(rewards + penalties, valid, settings.advantage_scaling)
    plain = np.where(masked, 0.0, in_group)
    alpha = _alpha(settings, plain)
    advantages = hysteretic(plain, alpha)
    scales = objective.scales(np.where(masked, 0, lengths), max_response_tokens)
    everywhere = settings.entropy_bonus > 0 or settings.kl_beta > 0
    learned = ~masked if everywhere else advantages != 0

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
        if learned[p, g]
    )
    metrics = _metrics(alpha, plain, zero_variance_share=float((in_group == 0).all(axis=1).mean()))
    if settings.overlong_tokens:
        metrics["reward/overlong_penalty_mean"] = float(penalties.mean())
    return WeighedBatch(rows=rows, metrics=metrics)


def _alpha(settings: ObjectiveConfig, plain: np.ndarray) -> float:
    if settings.alpha == "adaptive":
        return adaptive_alpha(sign_shares(plain), settings.alpha_min)
    assert isinstance(settings.alpha, float)
    return settings.alpha


def _metrics(alpha: float, plain: np.ndarray, zero_variance_share: float) -> dict[str, float]:
    """`plain`: advantages before they are weighed by α."""
    shares = sign_shares(plain)
    return {
        "objective/alpha": alpha,
        "objective/positive_share": shares.positive,
        "objective/negative_share": shares.negative,
        "objective/positive_push": float(plain[plain > 0].sum()),
        "objective/negative_push": float(-alpha * plain[plain < 0].sum()),
        "reward/zero_variance_share": zero_variance_share,
    }
