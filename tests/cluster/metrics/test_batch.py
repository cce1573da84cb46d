"""The metrics of a batch, computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from cluster.core.types import ScoredGroup, VersionSpan
from cluster.metrics.batch import batch_metrics
from tests.builders import make_group, make_response


def batch() -> list[ScoredGroup]:
    """Return 8 responses: 3 correct, 3 incorrect, 2 whose verifier failed."""
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


def test_the_metrics_of_a_batch() -> None:
    assert batch_metrics(batch(), learner_version=5) == pytest.approx(
        {
            "reward/mean": 3 / 6,  # of the responses with a verdict
            "reward/correct_fraction": 3 / 8,  # of all responses
            "reward/error_fraction": 2 / 8,
            "reward/limit_fraction": 0.0,
            "response_length/mean": 5.0,
            "response_length/correct_mean": (2 + 5 + 5) / 3,
            "response_length/incorrect_mean": (4 + 6 + 5) / 3,
            "response_length/std": math.sqrt((9 + 1 + 1 + 9) / 8),
            "response_length/min": 2.0,
            "response_length/max": 8.0,
            "response_length/truncated_fraction": 1 / 8,
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


def test_log_probabilities_that_are_not_finite_count_as_missing() -> None:
    """3 of 4 tokens in one response, none of 4 in the other."""
    responses = [make_response(4, [math.nan, -1.0, -math.inf, math.inf]), make_response(4)]
    metrics = batch_metrics([make_group([1.0, 0.0], responses)], learner_version=0)
    assert metrics["logprob_gap/missing_fraction"] == 3 / 8


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ([1.0, 1.0], {"response_length/correct_mean"}),
        ([0.0, None], {"response_length/incorrect_mean"}),
        ([None, None], set()),
    ],
)
def test_a_mean_length_by_outcome_is_left_out_without_such_responses(
    rewards: list[float | None], said: set[str]
) -> None:
    metrics = batch_metrics([make_group(rewards)], learner_version=0)
    assert metrics.keys() & {"response_length/correct_mean", "response_length/incorrect_mean"} == said


def test_staleness_counts_from_the_oldest_weights_of_a_response() -> None:
    """A response that began under version 3 and ended under version 5 has staleness 2 at version 5."""
    response = make_response(2, version=5)
    groups = [
        make_group(
            [1.0, 0.0],
            [response, replace(response, version_spans=(VersionSpan(3, 0, 1), VersionSpan(5, 1, 2)))],
        )
    ]
    metrics = batch_metrics(groups, learner_version=5)
    assert metrics["staleness/max"] == 2
