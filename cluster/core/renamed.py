"""Settings, metrics and outcomes that were renamed, and the translation of files that an earlier version wrote.

A run directory of an earlier version can be resumed, exported and reported on, because the readers of its files
translate the names. Names in a user's own files are not translated: `launch.py check` reports their present names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SETTINGS = {
    "rollout.tensor_parallel": "rollout.tensor_parallel_size",
    "rollout.gpu_memory_share": "rollout.gpu_memory_utilization",
    "rollout.restarts_in_a_row": "rollout.max_consecutive_failures",
    "objective.kl_weight": "objective.kl_coefficient",
    "objective.entropy_weight": "objective.entropy_coefficient",
    "learner.learning_rate_schedule": "learner.lr_schedule",
    "learner.max_gradient_norm": "learner.max_grad_norm",
    "learner.measure_gradient_share": "learner.measure_gradient_fraction",
    "reward.max_error_share": "reward.max_error_fraction",
    "reward.cut_off_is_wrong": "reward.truncated_is_incorrect",
    "task.options.held_out_data": "task.options.eval_data",
    "task.options.held_out_data_split": "task.options.eval_data_split",
    "task.options.held_out_problems": "task.options.eval_problems",
    "task.options.held_out_puzzles": "task.options.eval_puzzles",
    "task.options.held_out_share": "task.options.eval_fraction",
    "task.options.right_from": "task.options.correct_from",
    "task.options.randomised_labels": "task.options.randomized_labels",
}
"""The present name of each renamed setting."""

METRICS = {
    "eval/stderr": "eval/pass_at_1_stderr",
    "eval/response_tokens_mean": "eval/response_length_mean",
    "eval/truncated_share": "eval/truncated_fraction",
    "eval/error_share": "eval/error_fraction",
    "reward/right_share": "reward/correct_fraction",
    "reward/zero_variance_share": "reward/zero_variance_fraction",
    "reward/dropped_share": "reward/dropped_fraction",
    "reward/error_share": "reward/error_fraction",
    "reward/timeout_share": "reward/timeout_fraction",
    "objective/positive_share": "objective/positive_fraction",
    "objective/negative_share": "objective/negative_fraction",
    "objective/push_positive": "objective/advantage_mass_positive",
    "objective/push_negative": "objective/advantage_mass_negative",
    "objective/gradient_norm": "objective/grad_norm",
    "objective/clip_share_low": "objective/clip_fraction_low",
    "objective/clip_share_high": "objective/clip_fraction_high",
    "objective/importance_capped_share": "objective/importance_capped_fraction",
    "objective/gradient_share_positive": "objective/gradient_fraction_positive",
    "lengths/mean": "response_length/mean",
    "lengths/std": "response_length/std",
    "lengths/min": "response_length/min",
    "lengths/max": "response_length/max",
    "lengths/right_mean": "response_length/correct_mean",
    "lengths/wrong_mean": "response_length/incorrect_mean",
    "lengths/truncated_share": "response_length/truncated_fraction",
    "logprob_gap/missing_share": "logprob_gap/missing_fraction",
}
"""The present key of each renamed metric."""

OUTCOMES = {"right": "correct", "wrong": "incorrect"}
"""The present name of each renamed outcome of a verdict."""

DROP_REASONS = {"all right": "all correct", "all wrong": "all incorrect", "not judged": "no verdict"}
"""The present name of each renamed reason for which dynamic sampling drops a group."""

_TRANSCRIPT_KEYS = {"right": "correct", "judged": "valid"}


def current_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of a run's `config.yaml` under their present names."""
    current: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        name = SETTINGS.get(path, path).rpartition(".")[2]
        current[name] = current_settings(value, f"{path}.") if isinstance(value, Mapping) else value
    return current


def current_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of `metrics.jsonl` under the present keys of its metrics."""
    current = {METRICS.get(key, key): value for key, value in row.items()}
    if "dropped" in current:
        current["dropped"] = current_reasons(current["dropped"])
    return current


def current_reasons(by_reason: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping from reasons for dropped groups, under the reasons' present names."""
    return {DROP_REASONS.get(reason, reason): value for reason, value in by_reason.items()}


def current_transcript(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of `transcripts/*.jsonl`, with the present names of its keys and outcomes."""
    current = {_TRANSCRIPT_KEYS.get(key, key): value for key, value in group.items()}
    current["responses"] = [
        {**response, "outcome": OUTCOMES.get(response["outcome"], response["outcome"])}
        for response in group["responses"]
    ]
    return current
