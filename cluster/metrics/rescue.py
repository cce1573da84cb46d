"""The metrics of the rescue: how often each method acted in a step, and what it brought. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.core.config import RescueConfig
from cluster.core.types import ScoredGroup, Verdict


def rescue_metrics(
    options: RescueConfig,
    sampled: Sequence[ScoredGroup],
    trained: Sequence[ScoredGroup],
    step: int,
    examples_probability: float,
    successes: int,
) -> dict[str, float]:
    """Return the metrics of the methods that are on. A fraction of responses or groups that do not exist is left out.

    Args:
        sampled: the groups as they were sampled, with the dropped ones.
        trained: the groups that were trained on, with their replays.
        step: the version of the weights that were trained.
        examples_probability: p_t in this step.
        successes: the number of problems with a known success.
    """
    metrics = {"rescue/known_successes": float(successes)}
    if options.prefix_fraction > 0:
        pairs = [pair for group in sampled for pair in zip(group.responses, group.verdicts, strict=True)]
        prefixed = [verdict for response, verdict in pairs if response.prefix]
        metrics["rescue/prefixed_fraction"] = len(prefixed) / len(pairs)
        metrics |= _correct("rescue/prefix_correct_fraction", prefixed)
        metrics |= _informative(
            "rescue/prefix_informative_fraction", [group for group in sampled if group.prompt.prefixes]
        )
    if options.examples > 0:
        with_examples = [group for group in sampled if group.prompt.has_examples]
        metrics["rescue/examples_probability"] = examples_probability
        metrics["rescue/example_fraction"] = len(with_examples) / len(sampled)
        verdicts = [verdict for group in with_examples for verdict in group.verdicts]
        metrics |= _correct("rescue/example_correct_fraction", verdicts)
        metrics |= _informative("rescue/example_informative_fraction", with_examples)
    if options.replay_max_age_steps > 0:
        ages = [
            step - response.min_version
            for group in trained
            for response in group.responses
            if response.replayed_from is not None
        ]
        metrics["rescue/replayed_fraction"] = len(ages) / len(trained)
        if ages:
            metrics["rescue/replay_age_mean"] = sum(ages) / len(ages)
    return metrics


def _correct(key: str, verdicts: Sequence[Verdict]) -> dict[str, float]:
    valid = [verdict for verdict in verdicts if verdict.is_valid]
    return {key: sum(verdict.outcome == "correct" for verdict in valid) / len(valid)} if valid else {}


def _informative(key: str, groups: Sequence[ScoredGroup]) -> dict[str, float]:
    return {key: sum(0 < group.correct < group.valid for group in groups) / len(groups)} if groups else {}
