"""Build the training batch: the rewards of a batch become an advantage and a scale per response.

This is done once for the whole optimizer batch, before it is split over the learner ranks. After this, a rank only
sums `scale_i × Σ_t surrogate(ratio_it, advantage_i)` and the optional terms of each token. Nothing in a rank depends on
the number of ranks or on how the batch is cut into micro-batches, so neither does the loss. Pure numpy, float64.

Groups may have different numbers of responses, because an adaptive budget extends those without a correct response
(`cluster/training/budget.py`). Their rows are padded to arrays [P, G] with the size of the largest group as G. Padding
is no response: it is counted in no statistic, in no denominator and in no metric.

N is the number of responses of the batch, so all responses have the same weight, and a prompt counts in proportion to
its number of responses n (ours). Stopping a group at a success does not change the direction of its expected gradient,
only its size: that is E[n] ∇p, up to a factor between 1 − 1 / G and 1 without a scaling of advantages, and a group that
never stops early has 1 − 1 / G. Prompts with equal weights, by a mean over each group before the mean over groups,
would be worse off: a group would be divided by a number that depends on when its first success happened to come.
docs/objectives.md ("Groups of different sizes") has the reasons, tests/learner/objective/test_stopped_groups.py the
exact expectations.

Source of the formulas: HPO, arXiv 2605.30201. Choices of our own are marked (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.core.config import ObjectiveConfig
from cluster.core.types import Response, ScoredGroup, TrainingBatch, TrainingSample, Verdict
from learner.objective.objectives import Scaling, resolve, sign_fractions

STD_EPSILON = 1e-4
"""The constant added to the standard deviation, as in GRPO's implementations."""
LARGE_REWARD = 1e100
"""Rewards above this magnitude are divided by the largest one before they are averaged and squared, because the squares
of larger numbers may overflow."""
LARGEST_ADVANTAGE = 1e20
"""The limit of an advantage, which only huge rewards reach. The learner computes in float32, where a larger one could
overflow."""


def _rewards(verdicts: Sequence[Verdict]) -> list[float]:
    """Return the reward of each response of a group. One that took the verifier to a limit has no reward of its own; it
    gets the smallest one of its group, and at most 0, so that it never pays to be hard to verify."""
    smallest = min([0.0, *(verdict.reward for verdict in verdicts if verdict.is_valid)])
    return [smallest if verdict.outcome == "limit" else verdict.reward for verdict in verdicts]


def build_training_batch(
    groups: Sequence[ScoredGroup], config: ObjectiveConfig, max_response_tokens: int
) -> TrainingBatch:
    """Turn the scored groups of one optimizer batch into training samples and metrics.

    A prefix that a response was given counts as a part of its prompt: |τ_i| and the sums over tokens are those of the
    sampled tokens. Only the over-long penalty looks at the whole response, which the limit applies to.

    With `mask_truncated`, truncated responses count in their group's mean and standard deviation, and in N, but not in
    the sums over tokens (all as in TRL). They count as neither positive nor negative for α, since they have no gradient
    (ours).

    Args:
        groups: the groups as they were sampled.
        config: the objective and its options.
        max_response_tokens: the length limit under which the responses were sampled.
    """
    objective = resolve(config)
    rewards = padded([_rewards(group.verdicts) for group in groups], 0.0)
    valid = padded([[verdict.is_valid for verdict in group.verdicts] for group in groups], False)
    lengths = padded([[len(response.token_ids) for response in group.responses] for group in groups], 0)
    truncated = padded(
        [[response.finish_reason == "length" for response in group.responses] for group in groups], False
    )
    sampled = padded([[True] * len(group.responses) for group in groups], False)
    masked = truncated & config.mask_truncated

    whole_lengths = padded([[response.whole_length for response in group.responses] for group in groups], 0)
    penalties = overlong_penalties(whole_lengths, max_response_tokens, config.overlong_tokens)
    in_group = group_advantages(rewards + penalties, valid, objective.advantage_scaling)
    unweighted = np.where(masked, 0.0, in_group)
    fractions = sign_fractions(unweighted[sampled])
    alpha = objective.alpha_rule(fractions, config)
    advantages = hysteretic(unweighted, alpha)
    scales = np.zeros(lengths.shape)
    scales[sampled] = objective.scale_rule(np.where(masked, 0, lengths)[sampled], max_response_tokens)
    acts_on_all = bool(config.kl_coefficient) or config.entropy_coefficient > 0
    trained_on = ~masked if acts_on_all else advantages != 0

    prompts = [np.asarray(group.prompt.token_ids, dtype=np.int64) for group in groups]
    samples = tuple(
        _sample(prompts[p], response, float(advantages[p, g]), float(scales[p, g]))
        for p, group in enumerate(groups)
        for g, response in enumerate(group.responses)
        if trained_on[p, g]
    )
    metrics = {
        "objective/alpha": alpha,
        "objective/positive_fraction": fractions.positive,
        "objective/negative_fraction": fractions.negative,
        "objective/advantage_mass_positive": float(advantages[advantages > 0].sum() / sampled.sum()),
        "objective/advantage_mass_negative": float(-advantages[advantages < 0].sum() / sampled.sum()),
        "reward/zero_variance_fraction": float((in_group == 0).all(axis=1).mean()),
    }
    if config.overlong_tokens:
        metrics["reward/overlong_penalty_mean"] = float(penalties[sampled].mean())
    return TrainingBatch(samples=samples, metrics=metrics)


def _sample(prompt: np.ndarray, response: Response, advantage: float, scale: float) -> TrainingSample:
    """Return a response as it is trained on, in the context in which it was sampled. Its prefix is a part of that
    context, and the prompt of a replay is the one of its own batch. The other responses share the array `prompt`."""
    if response.replayed_from is not None:
        prompt = np.array(response.replayed_from, dtype=np.int64)
    if response.prefix:
        prompt = np.concatenate([prompt, np.array(response.prefix, dtype=np.int64)])
    return TrainingSample(
        prompt_token_ids=prompt,
        response_token_ids=response.token_ids,
        sampler_logprobs=response.logprobs,
        advantage=advantage,
        scale=scale,
        is_replay=response.replayed_from is not None,
    )


def padded(rows: Sequence[Sequence[Any]], padding: Any) -> np.ndarray:
    """Return the rows [P][n_p] as one array [P, G], in which shorter rows end with `padding`."""
    width = max(map(len, rows))
    return np.array([[*row, *[padding] * (width - len(row))] for row in rows])


def group_advantages(rewards: np.ndarray, valid: np.ndarray, scaling: Scaling = "group") -> np.ndarray:
    """Return A_i = c (R_i − R̄) with the mean R̄ of the group's n valid rewards, and the factor c of the scaling:

        group           1 / (std + 1e-4), with the standard deviation of the group's rewards
        batch           1 / (std + 1e-4), with that of all R_i − R̄ of the groups with reward variance (ours)
        whole_batch     1 / (std + 1e-4), with that of all R_i − R̄ of the batch (REINFORCE++, arXiv 2501.03262)
        mean            1 / R̄, and 0 unless R̄ > 0 (MaxRL, arXiv 2602.02710)
        leave_one_out   n / (n − 1), so that A_i is R_i minus the mean of the others (RLOO, arXiv 2402.14740)
        none            1

    Standard deviations are Bessel-corrected. Over a batch the mean of R_i − R̄ is 0, so nothing else is subtracted.

    A group whose valid rewards are all equal gets exactly 0. Equality is tested by max == min, because subtracting the
    mean of sixteen times 0.1 from 0.1 leaves a rounding error that the small denominator would amplify.

    MaxRL is defined for rewards of 0 and 1. Ours for others: its advantages are limited to ±(n − 1), which rewards that
    are not negative never exceed, and a group with R̄ < 0 gets 0 because the division would turn its signs around.

    Args:
        rewards: float [P, G].
        valid: bool [P, G]. False for responses whose verifier failed, and for the padding of smaller groups: they are
            left out of all statistics and get 0 (ours).
        scaling: the name of the factor.

    Returns:
        float64 [P, G].
    """
    valid = np.asarray(valid, dtype=bool)
    rewards = np.where(valid, np.asarray(rewards, dtype=np.float64), 0.0)
    unit = _unit(rewards, axis=None if scaling in ("batch", "whole_batch") else 1)
    rewards = rewards / unit
    ma: Any = np.ma  # numpy does not annotate masked arrays
    masked = ma.masked_array(rewards, mask=~valid)
    varied: np.ndarray = (masked.max(axis=1) != masked.min(axis=1)).filled(False)[:, None]
    means: np.ndarray = masked.mean(axis=1, keepdims=True).filled(0.0)
    centered = np.where(varied & valid, rewards - means, 0.0)
    # A response at its group's mean has advantage 0; the subtraction may leave a rounding error of either sign.
    centered[np.abs(centered) <= _rounding(rewards)] = 0.0
    others = np.maximum(valid.sum(axis=1, keepdims=True) - 1, 1)
    if scaling == "mean":
        divisors = np.where(means > _rounding(rewards), means, np.inf)
        relative: np.ndarray = np.clip(centered / divisors, -others, others)
        return relative
    if scaling in ("leave_one_out", "none"):
        factor = 1 + 1 / others if scaling == "leave_one_out" else 1.0
        with np.errstate(over="ignore"):  # to infinity, and from there to the limit
            limited: np.ndarray = np.clip(centered * factor * unit, -LARGEST_ADVANTAGE, LARGEST_ADVANTAGE)
        return limited
    if scaling == "group":
        variances = np.square(centered).sum(axis=1, keepdims=True) / others
    else:
        used = centered[valid & varied if scaling == "batch" else valid]
        variances = np.square(used).sum() / max(used.size - 1, 1)
    scaled: np.ndarray = centered / (np.sqrt(variances) + STD_EPSILON / unit)
    return np.clip(scaled, -LARGEST_ADVANTAGE, LARGEST_ADVANTAGE)


def _unit(rewards: np.ndarray, axis: int | None) -> np.ndarray:
    """Return the number by which rewards are divided, so that their squares are finite: 1 except for huge rewards. Its
    shape broadcasts to that of `rewards`."""
    largest: np.ndarray = np.abs(rewards).max(axis=axis, keepdims=True)
    return np.where(largest > LARGE_REWARD, largest, 1.0)


def _rounding(rewards: np.ndarray) -> np.ndarray:
    """Return the magnitude [P, 1] below which a mean of a group's rewards, or a difference from it, counts as 0."""
    limits: np.ndarray = 1e-14 * np.abs(rewards).max(axis=1, keepdims=True)
    return limits


def overlong_penalties(lengths: np.ndarray, max_tokens: int, penalized_tokens: int) -> np.ndarray:
    """Return DAPO's soft over-long penalty (arXiv 2503.14476), with L = max_tokens and c = penalized_tokens: 0 up to
    L − c, then falling linearly to −1 at L, and −1 beyond. All penalties are 0 for c = 0.

    The penalty is added to the reward from which advantages are computed; the verifier's outcome does not change.
    """
    if penalized_tokens == 0:
        return np.zeros(lengths.shape)
    penalties: np.ndarray = -np.clip((lengths - (max_tokens - penalized_tokens)) / penalized_tokens, 0.0, 1.0)
    return penalties


def hysteretic(advantages: np.ndarray, alpha: float) -> np.ndarray:
    """Return w_i A_i with w_i = 1 if A_i ≥ 0 else α."""
    return np.where(advantages < 0, alpha * advantages, advantages)
