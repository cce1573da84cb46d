"""What the weighed batch says of each response: its advantage with the hysteretic weight, and its tokens' scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import ObjectiveConfig
from cluster.contracts import ScoredGroup
from learner.advantages import group_advantages
from learner.weighing import Row, weigh
from tests.builders import make_group, make_prompt, make_response

HPO = ObjectiveConfig(name="hpo", alpha=0.6)
A_HPO = ObjectiveConfig(name="a_hpo", alpha_min=0.1)
GRPO = ObjectiveConfig(name="grpo")

# 1 of 4 right, 2 of 4 right, all right, one verifier failed; responses are numbered by their first token.
REWARDS: list[list[float | None]] = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, None]]
LENGTHS = [[2, 3, 4, 5], [1, 1, 2, 2], [7, 7, 7, 7], [3, 1, 1, 9]]
N, TOKENS = 16, 62


def scored(rewards: Sequence[Sequence[float | None]], lengths: Sequence[Sequence[int]]) -> list[ScoredGroup]:
    number = iter(range(10_000))
    return [
        make_group(of_group, [make_response([next(number)] * length) for length in of_lengths])
        for of_group, of_lengths in zip(rewards, lengths, strict=True)
    ]


def by_number(rows: Sequence[Row]) -> dict[int, Row]:
    return {int(row.response_token_ids[0]): row for row in rows}


def test_the_batch_of_these_tests_has_the_sizes_they_name() -> None:
    assert np.size(LENGTHS) == N
    assert np.sum(LENGTHS) == TOKENS


@pytest.mark.parametrize("objective", [HPO, A_HPO])
def test_hpo_divides_by_all_tokens_of_the_batch(objective: ObjectiveConfig) -> None:
    """1 / (N · L̄) = 1 / Σ|τ|. Responses without an advantage, right, failed or otherwise, are counted."""
    rows = weigh(scored(REWARDS, LENGTHS), objective).rows
    assert [row.scale for row in rows] == pytest.approx([1 / TOKENS] * len(rows))


def test_grpo_divides_each_response_by_its_own_tokens() -> None:
    rows = weigh(scored(REWARDS, LENGTHS), GRPO).rows
    assert [row.scale for row in rows] == pytest.approx(
        [1 / (N * len(row.response_token_ids)) for row in rows]
    )


@pytest.mark.parametrize("objective", [HPO, A_HPO, GRPO])
def test_rows_are_the_responses_with_an_advantage(objective: ObjectiveConfig) -> None:
    """Not those of the group that is all right, nor the one whose verifier failed."""
    rows = weigh(scored(REWARDS, LENGTHS), objective).rows
    assert [int(row.response_token_ids[0]) for row in rows] == [*range(8), 12, 13, 14]


@given(st.floats(0.01, 1))
def test_a_row_carries_the_hysteretic_advantage_of_its_response(alpha: float) -> None:
    rows = by_number(weigh(scored(REWARDS, LENGTHS), ObjectiveConfig(name="hpo", alpha=alpha)).rows)
    (plain,) = group_advantages(np.array([[1.0, 0, 0, 0]]), np.ones((1, 4), dtype=bool))
    assert [rows[i].advantage for i in range(4)] == pytest.approx([plain[0], *(alpha * plain[1:])])


def test_alpha_of_zero_keeps_right_responses_alone() -> None:
    rows = weigh(scored(REWARDS, LENGTHS), ObjectiveConfig(name="hpo", alpha=0)).rows
    assert [int(row.response_token_ids[0]) for row in rows] == [0, 4, 5, 12]


def test_adaptive_alpha_is_counted_over_the_batch() -> None:
    """4 responses have a positive and 7 a negative advantage."""
    batch = weigh(scored(REWARDS, LENGTHS), A_HPO)
    assert batch.metrics == pytest.approx(
        {
            "objective/alpha": 4 / 7,
            "objective/positive_share": 4 / N,
            "objective/negative_share": 7 / N,
            "reward/zero_variance_share": 1 / 4,
        }
    )


def test_adaptive_hpo_is_hpo_with_that_alpha() -> None:
    groups = scored(REWARDS, LENGTHS)
    adaptive, fixed = weigh(groups, A_HPO), weigh(groups, ObjectiveConfig(name="hpo", alpha=4 / 7))
    assert [row.advantage for row in adaptive.rows] == pytest.approx([row.advantage for row in fixed.rows])
    assert [row.scale for row in adaptive.rows] == [row.scale for row in fixed.rows]


def test_alpha_is_not_grpos_affair() -> None:
    groups = scored(REWARDS, LENGTHS)
    one, other = (weigh(groups, ObjectiveConfig(name="grpo", alpha=a, alpha_min=a)) for a in (0.2, 0.9))
    assert one.metrics["objective/alpha"] == 1
    assert [row.advantage for row in one.rows] == [row.advantage for row in other.rows]


@pytest.mark.parametrize("scaling", ["group", "batch", "none"])
def test_the_configured_scaling_is_used(scaling: str) -> None:
    objective = ObjectiveConfig.model_validate({"name": "grpo", "advantage_scaling": scaling})
    rows = by_number(weigh(scored(REWARDS[:3], LENGTHS[:3]), objective).rows)
    rewards = np.array(REWARDS[:3], dtype=float)
    expected = group_advantages(rewards, np.ones((3, 4), dtype=bool), objective.advantage_scaling)
    assert {i: row.advantage for i, row in rows.items()} == pytest.approx(
        {i: value for i, value in enumerate(expected.flatten().tolist()) if value}
    )


def test_a_batch_without_any_advantage_has_no_rows() -> None:
    batch = weigh(scored([[1, 1], [0, 0], [None, None], [None, 1]], [[1, 2]] * 4), A_HPO)
    assert batch.rows == ()
    assert batch.metrics["objective/alpha"] == 1
    assert batch.metrics["reward/zero_variance_share"] == 1


def test_a_row_carries_the_very_tokens_that_were_sampled() -> None:
    """Ids and log-probabilities travel; nothing is tokenised again."""
    response = make_response([9, 3, 1], logprobs=[-0.5, -1.5, -2.5])
    group = make_group([1, 0], [response, make_response()], make_prompt(token_ids=(4, 2)))
    row = weigh([group], GRPO).rows[0]
    assert row.prompt_token_ids.tolist() == [4, 2]
    assert row.response_token_ids.tolist() == [9, 3, 1]
    assert row.sampler_logprobs.tolist() == [-0.5, -1.5, -2.5]
    assert row.tokens == 5
