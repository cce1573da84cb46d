"""Build the training batch: advantages, α and denominators become two numbers per response.

This is done once for the whole optimizer batch, before it is split over the learner ranks. After this, a rank only
sums `scale_i × Σ_t surrogate(ratio_it, advantage_i)` and the optional terms of each token. Nothing in a rank depends on
the number of ranks or on how the batch is cut into micro-batches, so neither does the loss. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.core.config import ObjectiveConfig
from cluster.core.types import ScoredGroup, TrainingBatch, TrainingSample
from learner.objective.advantages import group_advantages, hysteretic, overlong_penalties, sign_fractions
from learner.objective.objectives import resolve


def build_training_batch(
    groups: Sequence[ScoredGroup], config: ObjectiveConfig, max_response_tokens: int
) -> TrainingBatch:
    """Turn the scored groups of one optimizer batch, all with G responses, into training samples and metrics.

    With `mask_truncated`, truncated responses count in their group's mean and standard deviation, and in N, but not in
    the sums over tokens (all as in TRL). They count as neither positive nor negative for α, since they have no gradient
    (ours).

    Args:
        groups: the groups as they were sampled.
        config: the objective and its options.
        max_response_tokens: the length limit under which the responses were sampled.
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
    unweighted = np.where(masked, 0.0, in_group)
    fractions = sign_fractions(unweighted)
    alpha = objective.alpha_rule(fractions, config)
    advantages = hysteretic(unweighted, alpha)
    scales = objective.scale_rule(np.where(masked, 0, lengths), max_response_tokens)
    acts_on_all = bool(config.kl_coefficient) or config.entropy_coefficient > 0
    trained_on = ~masked if acts_on_all else advantages != 0

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
        if trained_on[p, g]
    )
    metrics = {
        "objective/alpha": alpha,
        "objective/positive_fraction": fractions.positive,
        "objective/negative_fraction": fractions.negative,
        "objective/advantage_mass_positive": float(advantages[advantages > 0].sum() / advantages.size),
        "objective/advantage_mass_negative": float(-advantages[advantages < 0].sum() / advantages.size),
        "reward/zero_variance_fraction": float((in_group == 0).all(axis=1).mean()),
    }
    if config.overlong_tokens:
        metrics["reward/overlong_penalty_mean"] = float(penalties.mean())
    return TrainingBatch(samples=samples, metrics=metrics)
