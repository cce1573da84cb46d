"""The metrics of a training batch that are known before the update. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cluster.core.types import ScoredGroup, TrainingBatch


def batch_metrics(groups: Sequence[ScoredGroup], learner_version: int) -> dict[str, float]:
    """Return the metrics of the responses in `groups`: rewards, lengths (tokens), staleness (weight versions), and the
    fraction of tokens without a log-probability from the sampler.

    The mean reward and the fraction of correct responses are those of the responses that each prompt began with.
    Extended groups were chosen by their outcomes, so that their other responses would bias both.
    """
    first = [verdict for group in groups for verdict in group.verdicts[: group.prompt.sampling.responses]]
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    responses = [response for group in groups for response in group.responses]
    lengths = np.array([len(response.token_ids) for response in responses])
    staleness = np.array([learner_version - response.min_version for response in responses])
    missing = int((~np.isfinite(np.concatenate([response.logprobs for response in responses]))).sum())
    valid = [verdict for verdict in verdicts if verdict.is_valid]
    length_by_outcome = {}
    for outcome in ("correct", "incorrect"):
        has_outcome = np.array([verdict.outcome == outcome for verdict in verdicts])
        if has_outcome.any():  # without such a response there is no mean, and the key is left out
            length_by_outcome[f"response_length/{outcome}_mean"] = float(lengths[has_outcome].mean())
    return {
        "reward/mean": _mean([verdict.reward for verdict in first if verdict.is_valid]),
        "reward/correct_fraction": sum(verdict.outcome == "correct" for verdict in first) / len(first),
        "reward/error_fraction": 1 - len(valid) / len(verdicts),
        "reward/limit_fraction": sum(verdict.outcome == "limit" for verdict in verdicts) / len(verdicts),
        "response_length/mean": float(lengths.mean()),
        **length_by_outcome,
        "response_length/std": float(lengths.std()),
        "response_length/min": float(lengths.min()),
        "response_length/max": float(lengths.max()),
        "response_length/truncated_fraction": sum(r.finish_reason == "length" for r in responses)
        / len(responses),
        "logprob_gap/missing_fraction": missing / int(lengths.sum()),
        "staleness/mean": float(staleness.mean()),
        "staleness/max": float(staleness.max()),
    }


def _mean(values: Sequence[float]) -> float:
    """Return the mean of finite values, which is finite although their sum may not be; NaN without any."""
    if not values:
        return math.nan
    array = np.array(values)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(array.mean())
    return mean if math.isfinite(mean) else float((array / len(array)).sum())


def budget_metrics(trained: Sequence[ScoredGroup], sampled: Sequence[ScoredGroup]) -> dict[str, float]:
    """Return the metrics of an adaptive budget: the number of responses in the groups that are trained on, and what
    the extensions of all groups that were sampled for the batch achieved."""
    extended = [group for group in sampled if group.extra_responses]
    metrics = {
        "budget/responses": float(sum(len(group.responses) for group in trained)),
        "budget/extended_fraction": len(extended) / len(sampled),
    }
    if extended:  # otherwise there is no fraction, and the key is left out
        rescued = sum(group.correct > 0 for group in extended)
        metrics["budget/rescued_fraction"] = rescued / len(extended)
    return metrics


def batch_distributions(
    groups: Sequence[ScoredGroup], mini_batches: Sequence[TrainingBatch]
) -> dict[str, np.ndarray]:
    """Return the values that are shown as histograms: the lengths (tokens) of all sampled responses, and the advantages
    (after α) of the responses that are trained on."""
    return {
        "response_length": np.array(
            [
                len(response.token_ids)
                for group in groups
                for response in group.responses
                if response.replayed_from is None
            ]
        ),
        "advantages": np.array([row.advantage for batch in mini_batches for row in batch.samples]),
    }
