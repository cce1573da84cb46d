"""Merge the statistics of micro-batches, steps and ranks, and turn them into metrics. Pure, torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_MEANS_OVER_TOKENS = {
    "objective/entropy": "entropy",
    "objective/clip_fraction_low": "clipped_low",
    "objective/clip_fraction_high": "clipped_high",
    "objective/ratio_mean": "ratio",
    "objective/kl_to_old": "kl_to_old",
    "objective/kl_to_reference": "kl_to_reference",
    "objective/importance_weight_mean": "importance_weight",
    "objective/importance_capped_fraction": "capped",
}
"""Each metric that is a mean over tokens, and the sum it is computed from. Metrics of disabled options are left out."""


def merge(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Merge several parts into one: `min_…` and `max_…` are extremes, everything else is a sum."""
    merged: dict[str, float] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part[name] for part in parts if name in part]
        combine = min if name.startswith("min_") else max if name.startswith("max_") else sum
        # `min` and `max` would skip a NaN that does not come first.
        merged[name] = math.nan if any(map(math.isnan, values)) else combine(values)
    return merged


def learner_metrics(parts: Sequence[Mapping[str, float]], steps: int) -> dict[str, float]:
    """Return the metrics of `steps` optimizer steps from one entry per rank and step, the newest last. Values that are
    the same on all ranks are averaged."""
    merged = merge(parts)
    tokens, compared = merged["tokens"], merged["compared"]
    metrics = {
        metric: merged[name] / max(tokens, 1.0)
        for metric, name in _MEANS_OVER_TOKENS.items()
        if name in merged
    }
    metrics |= {
        "objective/loss": merged["loss"] / steps,
        "objective/ratio_min": merged["min_ratio"] if tokens else math.nan,
        "objective/ratio_max": merged["max_ratio"] if tokens else math.nan,
        "objective/learning_rate": parts[-1]["learning_rate"],
        "objective/grad_norm": merged["grad_norm"] / len(parts),
        "logprob_gap/mean": merged["logprob_gap"] / max(compared, 1.0),
        "logprob_gap/max": merged["max_logprob_gap"] if compared else 0.0,
        "learner_tokens": tokens,
    }
    if "positive_grad_norm" in merged:
        positive, negative = merged["positive_grad_norm"], merged["negative_grad_norm"]
        metrics["objective/gradient_fraction_positive"] = (
            positive / (positive + negative) if positive + negative else math.nan
        )
    return metrics
