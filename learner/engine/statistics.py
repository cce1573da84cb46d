"""What the learner ranks count, joined over micro-batches, steps and ranks, and said as metrics. Pure, torch-free."""

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
    "logprob_gap/mean": "logprob_gap",
}
"""Metric, and the sum that it is made of. Those of options that are off are left out."""


def merge(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Several parts as one: `min_…` and `max_…` are extremes, the rest are sums."""
    merged: dict[str, float] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part[name] for part in parts if name in part]
        join = min if name.startswith("min_") else max if name.startswith("max_") else sum
        merged[name] = join(values)
    return merged


def learner_metrics(of_steps: Sequence[Mapping[str, float]], steps: int) -> dict[str, float]:
    """What all ranks say of `steps` optimizer steps: one entry per rank and step, the newest last. What all ranks agree
    on is averaged."""
    merged = merge(of_steps)
    tokens = merged["tokens"]
    metrics = {
        metric: merged[name] / max(tokens, 1.0)
        for metric, name in _MEANS_OVER_TOKENS.items()
        if name in merged
    }
    metrics |= {
        "objective/loss": merged["loss"] / steps,
        "objective/ratio_min": merged["min_ratio"] if tokens else math.nan,
        "objective/ratio_max": merged["max_ratio"] if tokens else math.nan,
        "objective/learning_rate": of_steps[-1]["learning_rate"],
        "objective/grad_norm": merged["grad_norm"] / len(of_steps),
        "logprob_gap/max": merged["max_logprob_gap"] if tokens else 0.0,
        "learner_tokens": tokens,
    }
    if "positive_grad_norm" in merged:
        positive, negative = merged["positive_grad_norm"], merged["negative_grad_norm"]
        metrics["objective/gradient_fraction_positive"] = (
            positive / (positive + negative) if positive + negative else math.nan
        )
    return metrics
