"""What the learner ranks count, joined over micro-batches, steps and ranks, and said as metrics. Pure, torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def merge(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Several parts as one, all with the same names: `min_…` and `max_…` are extremes, the rest are sums."""
    merged: dict[str, float] = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if name.startswith("min_"):
            merged[name] = min(values)
        elif name.startswith("max_"):
            merged[name] = max(values)
        else:
            merged[name] = sum(values)
    return merged


def learner_metrics(of_steps: Sequence[Mapping[str, float]], steps: int) -> dict[str, float]:
    """What all ranks say of `steps` optimiser steps (one entry per rank and step). Sums become means over tokens."""
    merged = merge(of_steps)
    tokens = merged["tokens"]
    of_tokens = {
        "objective/entropy": "entropy",
        "objective/clip_share_low": "clipped_low",
        "objective/clip_share_high": "clipped_high",
        "objective/kl_to_old": "kl_to_old",
        "objective/kl_to_reference": "kl_to_reference",
        "objective/importance_weight_mean": "importance_weight",
        "logprob_gap/mean": "logprob_gap",
    }
    metrics = {
        metric: merged[name] / max(tokens, 1.0) for metric, name in of_tokens.items() if name in merged
    }
    metrics |= {
        "objective/loss": merged["loss"] / steps,
        "objective/ratio_min": merged["min_ratio"] if tokens else math.nan,
        "objective/ratio_max": merged["max_ratio"] if tokens else math.nan,
        "objective/learning_rate": of_steps[-1]["learning_rate"],
        "logprob_gap/max": merged["max_logprob_gap"] if tokens else 0.0,
        "learner_tokens": tokens,
    }
    if "gradient_norm" in merged:  # of all ranks' gradients together: each says the same
        metrics["objective/gradient_norm"] = merged["gradient_norm"] / len(of_steps)
    return metrics
