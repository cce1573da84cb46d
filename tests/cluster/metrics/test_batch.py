"""The numbers of a batch and of an evaluation, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from cluster.core.types import ScoredGroup, VersionSpan
from cluster.metrics.batch import batch_metrics, evaluation_metrics
from tests.builders import make_group, make_response


def batch() -> list[ScoredGroup]:
    """8 responses: 3 right, 3 wrong, 2 whose verifier failed."""
    return [
        make_group(
            [1.0, 0.0, 0.0, None],
            [make_response(2, version=4), make_response(4, version=5), make_response(6), make_response(8)],
        ),
        make_group(
            [1.0, 1.0, 0.0, None],
            [
                *[make_response(5, version=5) for _ in range(3)],
                make_response(5, version=5, finish_reason="length"),
            ],
        ),
    ]


def test_what_is_said_of_a_batch() -> None:
    assert batch_metrics(batch(), learner_version=5) == pytest.approx(
        {
            "reward/mean": 3 / 6,  # of those that were judged
            "reward/correct_fraction": 3 / 8,  # of all
            "reward/error_fraction": 2 / 8,
            "reward/timeout_fraction": 0.0,
            "lengths/mean": 5.0,
            "lengths/correct_mean": (2 + 5 + 5) / 3,
            "lengths/incorrect_mean": (4 + 6 + 5) / 3,
            "lengths/std": math.sqrt((9 + 1 + 1 + 9) / 8),
            "lengths/min": 2.0,
            "lengths/max": 8.0,
            "lengths/truncated_fraction": 1 / 8,
            "logprob_gap/missing_fraction": 0.0,
            "staleness/mean": (1 + 0 + 5 + 5) / 8,
            "staleness/max": 5.0,
        }
    )


def test_without_any_verdict_there_is_no_mean_reward() -> None:
    metrics = batch_metrics([make_group([None, None])], learner_version=0)
    assert math.isnan(metrics["reward/mean"])
    assert metrics["reward/correct_fraction"] == 0
    assert metrics["reward/error_fraction"] == 1


def test_log_probabilities_that_are_no_numbers_are_missing() -> None:
    """3 of 4 tokens in one response, none of 4 in the other."""
    responses = [make_response(4, [math.nan, -1.0, -math.inf, math.inf]), make_response(4)]
    metrics = batch_metrics([make_group([1.0, 0.0], responses)], learner_version=0)
    assert metrics["logprob_gap/missing_fraction"] == 3 / 8


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ([1.0, 1.0], {"lengths/correct_mean"}),
        ([0.0, None], {"lengths/incorrect_mean"}),
        ([None, None], set()),
    ],
)
def test_lengths_by_outcome_are_left_out_where_nothing_had_it(
    rewards: list[float | None], said: set[str]
) -> None:
    metrics = batch_metrics([make_group(rewards)], learner_version=0)
    assert metrics.keys() & {"lengths/correct_mean", "lengths/incorrect_mean"} == said


def test_staleness_counts_from_the_oldest_weights_of_a_response() -> None:
    """A response that was begun under version 3 and ended under 5 is two versions old at 5, not none."""
    response = make_response(2, version=5)
    groups = [
        make_group(
            [1.0, 0.0],
            [response, replace(response, version_spans=(VersionSpan(3, 0, 1), VersionSpan(5, 1, 2)))],
        )
    ]
    metrics = batch_metrics(groups, learner_version=5)
    assert metrics["staleness/max"] == 2


def test_pass_at_1_is_the_mean_over_prompts() -> None:
    """1, 1/2 and 0: their deviation is 1/2, so the standard error 1/2 / √3."""
    cut_off = [make_response(), make_response(finish_reason="length")]
    groups = [make_group([1.0, 1.0]), make_group([1.0, 0.0]), make_group([0.0, None], cut_off)]
    assert evaluation_metrics(groups) == pytest.approx(
        {
            "eval/pass_at_1": 0.5,
            "eval/stderr": 0.5 / math.sqrt(3),
            "eval/response_tokens_mean": 3.0,
            "eval/truncated_fraction": 1 / 6,
            "eval/error_fraction": 1 / 6,
        }
    )


def test_a_failed_verifier_says_nothing_about_the_model() -> None:
    """Neither of one response, nor, where all of them failed, of a prompt."""
    failed = [make_group([1.0, None, 0.0, None]), make_group([None, None])]
    assert evaluation_metrics(failed)["eval/pass_at_1"] == 1 / 2
    assert evaluation_metrics(failed)["eval/error_fraction"] == pytest.approx(4 / 6)
    assert math.isnan(evaluation_metrics(failed[1:])["eval/pass_at_1"])


def test_one_prompt_has_no_standard_error() -> None:
    assert math.isnan(evaluation_metrics([make_group([1.0, 0.0])])["eval/stderr"])
