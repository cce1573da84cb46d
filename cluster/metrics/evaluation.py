"""What an evaluation found, as numbers for a program. Pure. `evaluation_table.py` shows them to a person."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from cluster.core.config import RunConfig
from cluster.core.types import ScoredGroup
from cluster.metrics.batch import evaluation_metrics
from cluster.metrics.intervals import CONFIDENCE, METHOD, interval
from cluster.metrics.majority import majority_estimates, worth_a_vote
from cluster.metrics.pass_at_k import pass_at_k_estimates, powers_of_two
from reward.registry import build_task
from reward.task import CategorisedTask, CategoryOf, Split


def categories_of(config: RunConfig) -> CategoryOf:
    """As the configured task has them."""
    task = build_task(config.task.name, config.task.options)
    return task.category if isinstance(task, CategorisedTask) else lambda problem: None


def evaluation_report(
    config: RunConfig, split: Split, groups: Sequence[ScoredGroup], category_of: CategoryOf
) -> dict[str, Any]:
    """All that is to be said about the scored `groups`, fit for JSON. What cannot be estimated is None: an interval
    from one prompt, pass@k where no prompt has k judged responses."""
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
        "pass_at_1_stderr": _known(metrics["eval/stderr"]),
        **_rates(groups),
        "intervals": {"confidence": CONFIDENCE, "method": METHOD},
        "categories": {
            name: {"prompts": len(of_it), **_rates(of_it)} for name, of_it in sorted(by_category.items())
        },
        "truncated_fraction": metrics["eval/truncated_fraction"],
        "response_tokens_mean": metrics["eval/response_tokens_mean"],
        "failed_verdicts": sum(len(group.verdicts) - group.valid for group in groups),
    }


def _rates(groups: Sequence[ScoredGroup]) -> dict[str, Any]:
    """pass@k and maj@k, each by k, and their intervals."""
    passed = {k: pass_at_k_estimates(groups, k) for k in powers_of_two(len(groups[0].responses))}
    voted = {k: majority_estimates(groups, k) for k in worth_a_vote(groups)}
    judged = sum(group.valid for group in groups)
    return {
        "pass_at_k": {str(k): _mean(estimates) for k, estimates in passed.items()},
        "pass_at_k_interval": {str(k): _interval(estimates, judged) for k, estimates in passed.items()},
        "majority_at_k": {str(k): _mean(estimates) for k, estimates in voted.items()},
        "majority_at_k_interval": {str(k): _interval(estimates, judged) for k, estimates in voted.items()},
    }


def _mean(estimates: Sequence[float]) -> float | None:
    return fmean(estimates) if estimates else None


def _interval(estimates: Sequence[float], judged: int) -> list[float] | None:
    found = interval(estimates, judged)
    return None if found is None else list(found)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
