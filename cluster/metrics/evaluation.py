"""The results of an evaluation as numbers: metrics of the run, and the report of `launch.py eval`. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np

from cluster.core.config import RunConfig
from cluster.core.types import CategoryOf, ScoredGroup, Split
from cluster.metrics.intervals import CONFIDENCE, METHOD, interval
from cluster.metrics.pass_at_k import (
    majority_estimates,
    majority_ks,
    mean_pass_at_k,
    pass_at_k_estimates,
    powers_of_two,
)
from reward.registry import build_task
from reward.task import CategorisedTask


def categories_of(config: RunConfig) -> CategoryOf:
    """Return the configured task's function from a problem to its category; it returns None without categories."""
    task = build_task(config.task.name, config.task.options)
    return task.category if isinstance(task, CategorisedTask) else lambda problem: None


def evaluation_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Return pass@1 (the mean over prompts of the fraction of correct responses), its standard error over the prompts
    (which are the random sample), pass@k for the number k of responses per prompt if k > 1, and the mean length of the
    responses (tokens)."""
    by_prompt = np.array(pass_at_k_estimates(groups, 1))
    responses = [response for group in groups for response in group.responses]
    k = len(groups[0].responses)
    return {
        "eval/pass_at_1": mean_pass_at_k(groups, 1),
        **({"eval/pass_at_k": mean_pass_at_k(groups, k)} if k > 1 else {}),
        "eval/pass_at_1_stderr": float(by_prompt.std(ddof=1) / math.sqrt(len(by_prompt)))
        if len(by_prompt) > 1
        else math.nan,
        "eval/response_length_mean": float(np.mean([len(response.token_ids) for response in responses])),
        "eval/truncated_fraction": sum(r.finish_reason == "length" for r in responses) / len(responses),
        "eval/error_fraction": 1 - sum(group.valid for group in groups) / len(responses),
    }


def evaluation_report(
    config: RunConfig, split: Split, groups: Sequence[ScoredGroup], category_of: CategoryOf
) -> dict[str, Any]:
    """Return the report on the scored `groups`, ready for JSON.

    Values that cannot be estimated are None: an interval from one prompt, and pass@k if no prompt has k
    responses.
    """
    metrics = evaluation_metrics(groups)
    by_category: dict[str, list[ScoredGroup]] = defaultdict(list)
    for group in groups:
        if (category := category_of(group.prompt.problem)) is not None:
            by_category[category].append(group)
    return {
        "model": config.model.source,
        "task": config.task.name,
        "split": split,
        "prompts": len(groups),
        "responses_per_prompt": len(groups[0].responses),
        "temperature": config.rollout.temperature,
        "max_response_tokens": config.rollout.max_response_tokens,
        "seed": None if groups[0].prompt.sampling.seed is None else config.seed,
        "pass_at_1": _known(metrics["eval/pass_at_1"]),
        "pass_at_1_stderr": _known(metrics["eval/pass_at_1_stderr"]),
        **_rates(groups),
        "intervals": {"confidence": CONFIDENCE, "method": METHOD},
        "categories": {
            name: {"prompts": len(members), **_rates(members)}
            for name, members in sorted(by_category.items())
        },
        "truncated_fraction": metrics["eval/truncated_fraction"],
        "response_length_mean": metrics["eval/response_length_mean"],
        "failed_verdicts": sum(len(group.verdicts) - group.valid for group in groups),
    }


def _rates(groups: Sequence[ScoredGroup]) -> dict[str, Any]:
    """Return pass@k and maj@k by k, with their intervals."""
    passed = {k: pass_at_k_estimates(groups, k) for k in powers_of_two(len(groups[0].responses))}
    voted = {k: majority_estimates(groups, k) for k in majority_ks(groups)}
    responses = sum(len(group.verdicts) for group in groups)
    return {
        "pass_at_k": {str(k): _mean(estimates) for k, estimates in passed.items()},
        "pass_at_k_interval": {str(k): _interval(estimates, responses) for k, estimates in passed.items()},
        "majority_at_k": {str(k): _mean(estimates) for k, estimates in voted.items()},
        "majority_at_k_interval": {str(k): _interval(estimates, responses) for k, estimates in voted.items()},
    }


def _mean(estimates: Sequence[float]) -> float | None:
    return fmean(estimates) if estimates else None


def _interval(estimates: Sequence[float], responses: int) -> list[float] | None:
    found = interval(estimates, responses)
    return None if found is None else list(found)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
