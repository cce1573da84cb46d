"""What there is to say about a batch before it is learned from. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cluster.core.types import ScoredGroup
from cluster.metrics.pass_at_k import mean_pass_at_k, pass_at_k
from learner.objective.training_batch import TrainingBatch


def batch_metrics(groups: Sequence[ScoredGroup], learner_version: int) -> dict[str, float]:
    """Rewards, lengths (tokens) and staleness (weight versions) of the responses in `groups`, and the share of their
    tokens of which the sampler did not say how likely they were."""
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    responses = [response for group in groups for response in group.responses]
    lengths = np.array([len(response.token_ids) for response in responses])
    staleness = np.array([learner_version - response.min_version for response in responses])
    missing = int((~np.isfinite(np.concatenate([response.logprobs for response in responses]))).sum())
    judged = [verdict for verdict in verdicts if verdict.outcome in ("correct", "incorrect")]
    by_outcome = {}
    for outcome in ("correct", "incorrect"):
        having_it = np.array([verdict.outcome == outcome for verdict in verdicts])
        if having_it.any():  # else there is no mean, and the key is left out
            by_outcome[f"lengths/{outcome}_mean"] = float(lengths[having_it].mean())
    return {
        "reward/mean": float(np.mean([verdict.reward for verdict in judged])) if judged else math.nan,
        "reward/correct_fraction": sum(verdict.outcome == "correct" for verdict in verdicts) / len(verdicts),
        "reward/error_fraction": 1 - len(judged) / len(verdicts),
        "reward/timeout_fraction": sum(verdict.outcome == "timeout" for verdict in verdicts) / len(verdicts),
        "lengths/mean": float(lengths.mean()),
        **by_outcome,
        "lengths/std": float(lengths.std()),
        "lengths/min": float(lengths.min()),
        "lengths/max": float(lengths.max()),
        "lengths/truncated_fraction": sum(r.finish_reason == "length" for r in responses) / len(responses),
        "logprob_gap/missing_fraction": missing / int(lengths.sum()),
        "staleness/mean": float(staleness.mean()),
        "staleness/max": float(staleness.max()),
    }


def batch_distributions(
    groups: Sequence[ScoredGroup], mini_batches: Sequence[TrainingBatch]
) -> dict[str, np.ndarray]:
    """What is shown as histograms: lengths (tokens) of all responses, and the advantages, α included, of those that
    are learned from."""
    return {
        "lengths": np.array([len(response.token_ids) for group in groups for response in group.responses]),
        "advantages": np.array([row.advantage for batch in mini_batches for row in batch.rows]),
    }


def evaluation_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """pass@1: the mean over prompts of the share of right responses among those that were judged.

    The standard error is that of the mean over prompts, which are what was drawn at random.
    """
    shares = np.array([pass_at_k(group.valid, group.correct, 1) for group in groups if group.valid])
    responses = [response for group in groups for response in group.responses]
    return {
        "eval/pass_at_1": mean_pass_at_k(groups, 1),
        "eval/stderr": float(shares.std(ddof=1) / math.sqrt(len(shares))) if len(shares) > 1 else math.nan,
        "eval/response_tokens_mean": float(np.mean([len(response.token_ids) for response in responses])),
        "eval/truncated_fraction": sum(r.finish_reason == "length" for r in responses) / len(responses),
        "eval/error_fraction": 1 - sum(group.valid for group in groups) / len(responses),
    }
