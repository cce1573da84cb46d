"""The numbers of `launch.py plan`, from a sample of scored responses. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

from cluster.core.config import RunConfig
from cluster.core.types import ScoredGroup
from cluster.metrics.group_sizes import (
    GROUP_SIZES,
    GroupSize,
    Suggestion,
    group_sizes,
    largest_unseen_rate,
    suggestion,
)
from cluster.metrics.intervals import CONFIDENCE
from cluster.metrics.pass_at_k import mean_pass_at_k
from cluster.metrics.pass_rates import METHOD, PassCounts, PassRates, Quantity
from cluster.tracking.formats import rounded
from learner.objective.objectives import resolve

SUCCESS = (
    "the verifier says correct, as in pass@k; a response on which it failed or reached a limit is no success"
)
NEEDED_PER_STEP = 1.0
"""The number of informative groups in an average step below which training cannot work."""


class Verdict(NamedTuple):
    """Whether training can work, and the reason in one line."""

    works: Literal["yes", "uncertain", "no"]
    reason: str


def plan_report(
    config: RunConfig, groups: Sequence[ScoredGroup], seconds: float, workers: int
) -> dict[str, Any]:
    """Return the report on the scored `groups`, ready for JSON.

    If all responses or none of them are correct, there are no predictions: `pass_rate`, `distribution`,
    `expected_histogram` and `suggestion` are None, and `group_sizes` is empty.

    Args:
        config: The run that is planned.
        groups: The sampled groups, all with the same number of responses.
        seconds: The time that `workers` rollout workers took for them.
    """
    counts = PassCounts(tuple(group.correct for group in groups), len(groups[0].responses))
    found = _sampled(config, groups, counts) | {
        "sampling": {
            "seconds": seconds,
            "workers": workers,
            "responses_per_second": len(groups) * counts.responses / seconds,
        }
    }
    if len(set(counts.correct)) == 1 and counts.correct[0] in (0, counts.responses):
        predictions, suggested = _predictions(_verdict_without_contrast(counts)), None
    else:
        predictions, suggested = _predicted(config, counts, found["sampling"]["responses_per_second"])
    return found | predictions | {"notes": list(_notes(config, groups, workers, suggested))}


def _sampled(config: RunConfig, groups: Sequence[ScoredGroup], counts: PassCounts) -> dict[str, Any]:
    """Return what was sampled."""
    truncated = [response.finish_reason == "length" for group in groups for response in group.responses]
    return {
        "model": config.model.source,
        "task": config.task.name,
        "prompts": len(groups),
        "responses_per_prompt": counts.responses,
        "temperature": config.rollout.temperature,
        "max_response_tokens": config.rollout.max_response_tokens,
        "seed": config.seed,
        "success": SUCCESS,
        "correct": sum(counts.correct),
        "failed_verdicts": sum(len(group.verdicts) - group.valid for group in groups),
        "truncated_fraction": sum(truncated) / len(truncated),
        "pass_at_1": mean_pass_at_k(groups, 1),
        "histogram": counts.histogram.tolist(),
        "responses_per_step": config.responses_per_step,
        "intervals": {"confidence": CONFIDENCE, "method": METHOD},
    }


def _predicted(config: RunConfig, counts: PassCounts, speed: float) -> tuple[dict[str, Any], Suggestion]:
    """Return the second half of a report, and the suggestion in it."""
    rates = PassRates.from_counts(counts)
    sizes = group_sizes(
        counts,
        rates,
        config.responses_per_step,
        config.learner.mini_batches,
        config.objective.alpha_min,
        {*GROUP_SIZES, config.rollout.responses_per_prompt},
    )
    suggested = suggestion(rates, sizes)
    predictions = _predictions(
        _verdict(suggested.size),
        pass_rate=asdict(rates.quantity(rates.mean)),
        distribution={
            "mean_of_solvable": asdict(rates.quantity(rates.mu)),
            "correlation_of_solvable": asdict(rates.quantity(rates.rho)),
            "unsolvable_fraction": asdict(rates.quantity(rates.z)),
            "unsolvable_probability": rates.unsolvable_probability,
        },
        expected_histogram=[
            len(counts.correct) * float(rates.average(probability))
            for probability in rates.count_probabilities(counts.responses)
        ],
        group_sizes=[_size(size, speed) for size in sizes],
        suggestion=_suggestion(suggested, config),
    )
    return predictions, suggested


def _predictions(verdict: Verdict, **predicted: Any) -> dict[str, Any]:
    """Return the second half of a report, which has the same keys whatever was predicted."""
    absent: dict[str, Any] = {
        "pass_rate": None,
        "distribution": None,
        "expected_histogram": None,
        "group_sizes": [],
        "suggestion": None,
    }
    return {"works": verdict.works, "reason": verdict.reason} | absent | predicted


def _size(size: GroupSize, speed: float) -> dict[str, Any]:
    """Return the predictions for a group size, at `speed` responses per second."""
    return asdict(size) | {
        "seconds_per_informative_group": asdict(
            size.responses_per_informative_group.under(lambda responses: responses / speed)
        ),
        "signal_per_second": asdict(size.signal.under(lambda signal: signal * speed)),
    }


def _suggestion(suggested: Suggestion, config: RunConfig) -> dict[str, Any]:
    size = suggested.size
    settings = {
        "rollout.prompts_per_step": size.prompts,
        "rollout.responses_per_prompt": size.responses,
    }
    return {
        "settings": settings,
        "is_configured": size.responses == config.rollout.responses_per_prompt,
        "nearly_best": list(suggested.nearly_best),
        "best_between": list(suggested.best_between),
    }


def _verdict(size: GroupSize) -> Verdict:
    """Return the verdict on training with a group size into which a step can be divided."""
    informative = size.informative_groups_per_step
    assert informative is not None
    step = f"{size.prompts} × {size.responses} responses"
    if informative.high < NEEDED_PER_STEP:
        return Verdict(
            "no",
            f"training cannot work: in an average step of {step}, {_shown(informative)} groups are informative, and "
            f"{NEEDED_PER_STEP:g} is needed; one takes {_shown(size.responses_per_informative_group)} responses, so "
            "make the task easier, or the steps larger",
        )
    if informative.low < NEEDED_PER_STEP:
        return Verdict(
            "uncertain",
            f"it is not certain that training can work: in an average step of {step}, {_shown(informative)} groups "
            f"are informative, and {NEEDED_PER_STEP:g} is needed; sample more prompts (--prompts)",
        )
    return Verdict(
        "yes",
        f"training can work: in an average step of {step}, {_shown(informative)} groups are informative",
    )


def _verdict_without_contrast(counts: PassCounts) -> Verdict:
    """Return the verdict on a sample in which all responses or none are correct."""
    prompts, each = len(counts.correct), counts.responses
    # If the pass rates of these prompts have the mean m, all responses fail with a probability of at most
    # (1 − m)^responses. If the mean over all prompts is m, it is at most (1 − m)^prompts, as where prompts are always
    # or never solved.
    these, every = largest_unseen_rate(prompts * each), largest_unseen_rate(prompts)
    limits = f"{rounded(100 * these)} % on these prompts and {rounded(100 * every)} % on all training prompts"
    sure = f"with {100 * CONFIDENCE:.0f} % confidence, the mean"
    if any(counts.correct):
        return Verdict(
            "no",
            f"training has no signal: all of {prompts * each} responses to {prompts} prompts are correct; {sure} "
            f"rate of failure is below {limits}; choose harder prompts",
        )
    return Verdict(
        "no",
        f"training cannot work: none of {prompts * each} responses to {prompts} prompts is correct; {sure} pass "
        f"rate is below {limits}; make the task easier, or train on examples first",
    )


def _notes(
    config: RunConfig, groups: Sequence[ScoredGroup], workers: int, suggested: Suggestion | None
) -> Iterator[str]:
    """Yield what qualifies the numbers, each as one line."""
    failed = sum(len(group.verdicts) - group.valid for group in groups)
    if failed:
        yield f"the verifier failed on {failed} responses; training leaves them out, and here they are no success"
    if hidden := sum(map(_has_hidden_variance, groups)):
        yield (
            f"the rewards of {hidden} groups differ although none or all of their responses are correct: training gets "
            "a signal from such groups that this plan does not count"
        )
    if workers < config.rollout.workers:
        yield f"the speed is that of {workers} rollout workers; rollout.workers is {config.rollout.workers}"
    if suggested is None:
        return
    size, objective = suggested.size, config.objective
    if resolve(objective).uses_alpha_min and size.alpha.high <= objective.alpha_min:
        yield f"α stays at objective.alpha_min: a_hpo is hpo with objective.alpha={objective.alpha_min:g} at first"
    limit = config.rollout.dynamic_sampling_limit
    prompts = size.responses_per_informative_group.under(lambda responses: responses / size.responses)
    if limit is not None and limit < prompts.high:
        yield (
            f"dynamic sampling needs {_shown(prompts)} times the prompts of a batch to fill it, and the run stops at "
            f"{limit} times (rollout.dynamic_sampling_limit)"
        )


def _has_hidden_variance(group: ScoredGroup) -> bool:
    outcomes = {verdict.outcome == "correct" for verdict in group.verdicts if verdict.is_valid}
    return len(outcomes) == 1 and len({verdict.reward for verdict in group.verdicts if verdict.is_valid}) > 1


def _shown(quantity: Quantity) -> str:
    return f"{rounded(quantity.estimate)} ({rounded(quantity.low)} … {rounded(quantity.high)})"
