"""The batch is weighed once, globally, before it is split: advantages, α and denominators become two numbers per
response.

After this, learner ranks only sum `scale_i × Σ_t surrogate(ratio_it, advantage_i)`, with what the options add to each
token. Nothing in a rank depends on how many ranks there are or how the batch was cut into micro-batches, so neither
does the loss. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.core.config import ObjectiveConfig
from cluster.core.types import ScoredGroup, TrainingBatch, TrainingSample
from learner.objective.advantages import group_advantages, hysteretic, overlong_penalties, sign_fractions
from learner.objective.table import resolve


def build_training_batch(
    groups: Sequence[ScoredGroup], config: ObjectiveConfig, max_response_tokens: int
) -> TrainingBatch:
    """Turn the scored groups of one optimizer batch, all with G responses, into weighed samples.

    With `mask_truncated`, responses that were cut off count in their group's mean and deviation, and in N, but not in
    the sums over tokens (all as in TRL); nor on either side for α, since they push neither way (ours).

    Args:
        groups: as they were sampled.
        config: which objective, and its options.
        max_response_tokens: the limit under which they were sampled.
    """
    objective = resolve(config)
    rewards = np.array([[verdict.reward for verdict in group.verdicts] for group in groups])
    valid = np.array(
        [[verdict.outcome in ("correct", "incorrect") for verdict in group.verdicts] for group in groups]
    )
    lengths = np.array([[len(response.token_ids) for response in group.responses] for group in groups])
    truncated = np.array(
        [[response.finish_reason == "length" for response in group.responses] for group in groups]
    )
    masked = truncated & config.mask_truncated

    penalties = overlong_penalties(lengths, max_response_tokens, config.overlong_tokens)
    in_group = group_advantages(rewards + penalties, valid, objective.advantage_scaling)
    plain = np.where(masked, 0.0, in_group)
    shares = sign_fractions(plain)
    alpha = objective.alpha_rule(shares, config)
    advantages = hysteretic(plain, alpha)
    scales = objective.scale_rule(np.where(masked, 0, lengths), max_response_tokens)
    acts_on_all = bool(config.kl_coefficient) or config.entropy_coefficient > 0
    learned_from = ~masked if acts_on_all else advantages != 0

    prompts = [np.asarray(group.prompt.token_ids, dtype=np.int64) for group in groups]
    samples = tuple(
        TrainingSample(
            prompt_token_ids=prompts[p],
            response_token_ids=response.token_ids,
            sampler_logprobs=response.logprobs,
            advantage=float(advantages[p, g]),
            scale=float(scales[p, g]),
        )
        for p, group in enumerate(groups)
        for g, response in enumerate(group.responses)
        if learned_from[p, g]
    )
    metrics = {
        "objective/alpha": alpha,
        "objective/positive_fraction": shares.positive,
        "objective/negative_fraction": shares.negative,
        "objective/advantage_mass_positive": float(advantages[advantages > 0].sum() / advantages.size),
        "objective/advantage_mass_negative": float(-advantages[advantages < 0].sum() / advantages.size),
        "reward/zero_variance_fraction": float((in_group == 0).all(axis=1).mean()),
    }
    if config.overlong_tokens:
        metrics["reward/overlong_penalty_mean"] = float(penalties.mean())
    return TrainingBatch(samples=samples, metrics=metrics)
