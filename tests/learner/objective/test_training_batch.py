"""The training batch: each response's advantage with the hysteretic weight, and the scale of its tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.config import ObjectiveConfig
from cluster.core.types import ScoredGroup, TrainingBatch, TrainingSample, Verdict
from learner.objective.objectives import OBJECTIVES, Scaling, resolve
from learner.objective.training_batch import STD_EPSILON, group_advantages
from learner.objective.training_batch import build_training_batch as build_under_limit
from tests.builders import make_group, make_prompt, make_response

HPO = ObjectiveConfig(name="hpo", alpha=0.6)
A_HPO = ObjectiveConfig(name="a_hpo", alpha_min=0.1)
GRPO = ObjectiveConfig(name="grpo")

USES_ALPHA = {"hpo", "a_hpo", "hpo_dual_clip", "a_hpo_dual_clip"}

# 1 of 4 correct, 2 of 4 correct, all correct, one verifier failed; responses are numbered by their first token.
REWARDS: list[list[float | None]] = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, None]]
LENGTHS = [[2, 3, 4, 5], [1, 1, 2, 2], [7, 7, 7, 7], [3, 1, 1, 9]]
N, TOKENS = 16, 62
MAX_RESPONSE_TOKENS = 10


def build_training_batch(groups: Sequence[ScoredGroup], objective: ObjectiveConfig) -> TrainingBatch:
    return build_under_limit(groups, objective, MAX_RESPONSE_TOKENS)


def scored(rewards: Sequence[Sequence[float | None]], lengths: Sequence[Sequence[int]]) -> list[ScoredGroup]:
    number = iter(range(10_000))
    return [
        make_group(of_group, [make_response([next(number)] * length) for length in of_lengths])
        for of_group, of_lengths in zip(rewards, lengths, strict=True)
    ]


def by_number(samples: Sequence[TrainingSample]) -> dict[int, TrainingSample]:
    return {int(sample.response_token_ids[0]): sample for sample in samples}


def test_the_batch_of_these_tests_has_the_sizes_they_name() -> None:
    assert np.size(LENGTHS) == N
    assert np.sum(LENGTHS) == TOKENS


@pytest.mark.parametrize(
    "name",
    ["dapo", "cispo", "hpo", "a_hpo", "maxrl", "reinforce_pp", "hpo_dual_clip", "a_hpo_dual_clip"],
)
def test_token_means_divide_by_all_tokens_of_the_batch(name: str) -> None:
    """1 / (N · L̄) = 1 / Σ|τ|. Responses without an advantage are counted, whatever their outcome."""
    samples = build_training_batch(scored(REWARDS, LENGTHS), ObjectiveConfig(name=name)).samples
    assert [sample.scale for sample in samples] == pytest.approx([1 / TOKENS] * len(samples))


@pytest.mark.parametrize("name", ["grpo", "gspo", "sapo", "grpo_dual_clip"])
def test_means_of_means_divide_each_response_by_its_own_tokens(name: str) -> None:
    samples = build_training_batch(scored(REWARDS, LENGTHS), ObjectiveConfig(name=name)).samples
    assert [sample.scale for sample in samples] == pytest.approx(
        [1 / (N * len(sample.response_token_ids)) for sample in samples]
    )


def test_rloo_divides_by_the_number_of_responses_alone() -> None:
    samples = build_training_batch(scored(REWARDS, LENGTHS), ObjectiveConfig(name="rloo")).samples
    assert [sample.scale for sample in samples] == [1 / N] * len(samples)


def test_dr_grpo_divides_by_a_length_that_was_not_sampled() -> None:
    samples = build_training_batch(scored(REWARDS, LENGTHS), ObjectiveConfig(name="dr_grpo")).samples
    assert [sample.scale for sample in samples] == pytest.approx(
        [1 / (N * MAX_RESPONSE_TOKENS)] * len(samples)
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_samples_are_the_responses_with_an_advantage(name: str) -> None:
    """The group that is all correct and the response whose verifier failed have no samples."""
    samples = build_training_batch(scored(REWARDS, LENGTHS), ObjectiveConfig(name=name)).samples
    assert [int(sample.response_token_ids[0]) for sample in samples] == [*range(8), 12, 13, 14]


@given(st.floats(0.01, 1))
def test_a_sample_carries_the_hysteretic_advantage_of_its_response(alpha: float) -> None:
    samples = by_number(
        build_training_batch(scored(REWARDS, LENGTHS), ObjectiveConfig(name="hpo", alpha=alpha)).samples
    )
    (plain,) = group_advantages(np.array([[1.0, 0, 0, 0]]), np.ones((1, 4), dtype=bool))
    assert [samples[i].advantage for i in range(4)] == pytest.approx([plain[0], *(alpha * plain[1:])])


def test_alpha_of_zero_keeps_positive_advantages_only() -> None:
    samples = build_training_batch(scored(REWARDS, LENGTHS), ObjectiveConfig(name="hpo", alpha=0)).samples
    assert [int(sample.response_token_ids[0]) for sample in samples] == [0, 4, 5, 12]


def test_adaptive_alpha_is_counted_over_the_batch() -> None:
    """4 responses have a positive and 7 a negative advantage."""
    batch = build_training_batch(scored(REWARDS, LENGTHS), A_HPO)
    pushed = sum(sample.advantage for sample in batch.samples if sample.advantage > 0) / N
    assert batch.metrics == pytest.approx(
        {
            "objective/alpha": 4 / 7,
            "objective/positive_fraction": 4 / N,
            "objective/negative_fraction": 7 / N,
            "objective/advantage_mass_positive": pytest.approx(pushed),
            "objective/advantage_mass_negative": pytest.approx(
                4 / 7 * pushed
            ),  # without α both masses are equal
            "reward/zero_variance_fraction": 1 / 4,
        }
    )


def test_adaptive_hpo_is_hpo_with_that_alpha() -> None:
    groups = scored(REWARDS, LENGTHS)
    adaptive, fixed = (
        build_training_batch(groups, A_HPO),
        build_training_batch(groups, ObjectiveConfig(name="hpo", alpha=4 / 7)),
    )
    assert [sample.advantage for sample in adaptive.samples] == pytest.approx(
        [sample.advantage for sample in fixed.samples]
    )
    assert [sample.scale for sample in adaptive.samples] == [sample.scale for sample in fixed.samples]


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - USES_ALPHA))
def test_other_objectives_do_not_depend_on_alpha(name: str) -> None:
    groups = scored(REWARDS, LENGTHS)
    one, other = (
        build_training_batch(groups, ObjectiveConfig(name=name, alpha=a, alpha_min=a)) for a in (0.2, 0.9)
    )
    assert one.metrics["objective/alpha"] == 1
    assert [sample.advantage for sample in one.samples] == [sample.advantage for sample in other.samples]


@pytest.mark.parametrize("scaling", get_args(Scaling))
def test_the_configured_scaling_is_used(scaling: str) -> None:
    objective = ObjectiveConfig.model_validate({"name": "grpo", "advantage_scaling": scaling})
    samples = by_number(build_training_batch(scored(REWARDS[:3], LENGTHS[:3]), objective).samples)
    rewards = np.array(REWARDS[:3], dtype=float)
    expected = group_advantages(rewards, np.ones((3, 4), dtype=bool), resolve(objective).advantage_scaling)
    assert {i: sample.advantage for i, sample in samples.items()} == pytest.approx(
        {i: value for i, value in enumerate(expected.flatten().tolist()) if value}
    )


def test_dr_grpo_does_not_divide_by_a_deviation() -> None:
    samples = by_number(
        build_training_batch(scored(REWARDS[:1], LENGTHS[:1]), ObjectiveConfig(name="dr_grpo")).samples
    )
    assert [samples[i].advantage for i in range(4)] == pytest.approx([0.75, -0.25, -0.25, -0.25])


@pytest.mark.parametrize(
    ("name", "advantages"),
    [
        ("maxrl", [3, -1, -1, -1]),
        ("rloo", [1, -1 / 3, -1 / 3, -1 / 3]),
        ("reinforce_pp", [0.75 / (0.5 + STD_EPSILON), *[-0.25 / (0.5 + STD_EPSILON)] * 3]),
    ],
)
def test_scaled_advantages_by_hand(name: str, advantages: list[float]) -> None:
    """1 of 4 correct, in a batch of one group."""
    samples = build_training_batch(scored(REWARDS[:1], LENGTHS[:1]), ObjectiveConfig(name=name)).samples
    assert [sample.advantage for sample in samples] == pytest.approx(advantages)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_setting_that_is_given_takes_the_place_of_the_default(name: str) -> None:
    default = OBJECTIVES[name]
    assert resolve(ObjectiveConfig(name=name)) == default
    given = ObjectiveConfig(name=name, clip_low=0.125, clip_high=0.375, advantage_scaling="batch")
    assert resolve(given) == replace(default, clip_low=0.125, clip_high=0.375, advantage_scaling="batch")


def test_a_batch_without_any_advantage_has_no_samples() -> None:
    batch = build_training_batch(scored([[1, 1], [0, 0], [None, None], [None, 1]], [[1, 2]] * 4), A_HPO)
    assert batch.samples == ()
    assert batch.metrics["objective/alpha"] == 1
    assert (
        batch.metrics["objective/advantage_mass_positive"]
        == batch.metrics["objective/advantage_mass_negative"]
        == 0
    )
    assert batch.metrics["reward/zero_variance_fraction"] == 1


def test_a_sample_carries_the_very_tokens_that_were_sampled() -> None:
    """Ids and log-probabilities travel; nothing is tokenized again."""
    response = make_response([9, 3, 1], logprobs=[-0.5, -1.5, -2.5])
    group = make_group([1, 0], [response, make_response()], make_prompt(token_ids=(4, 2)))
    sample = build_training_batch([group], GRPO).samples[0]
    assert sample.prompt_token_ids.tolist() == [4, 2]
    assert sample.response_token_ids.tolist() == [9, 3, 1]
    assert sample.sampler_logprobs.tolist() == [-0.5, -1.5, -2.5]
    assert sample.tokens == 5


# --- Truncated responses.


def with_truncated(groups: Sequence[ScoredGroup], numbers: Collection[int]) -> list[ScoredGroup]:
    """Return the same groups with these responses truncated."""

    def cut(group: ScoredGroup) -> ScoredGroup:
        responses = tuple(
            replace(response, finish_reason="length") if int(response.token_ids[0]) in numbers else response
            for response in group.responses
        )
        return replace(group, group=replace(group.group, responses=responses))

    return [cut(group) for group in groups]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_masked_response_stays_in_its_groups_statistics_and_gets_no_sample(name: str) -> None:
    """The other responses keep their advantages."""
    groups = with_truncated(scored(REWARDS, LENGTHS), {3, 6})
    plain = by_number(build_training_batch(groups, ObjectiveConfig(name=name, alpha_min=1.0)).samples)
    masked = by_number(
        build_training_batch(groups, ObjectiveConfig(name=name, alpha_min=1.0, mask_truncated=True)).samples
    )
    assert plain.keys() - masked.keys() == {3, 6}
    assert {i: sample.advantage for i, sample in masked.items()} == {i: plain[i].advantage for i in masked}


@pytest.mark.parametrize(
    ("name", "denominator"),
    [
        ("hpo", TOKENS - 5 - 2),
        ("dapo", TOKENS - 5 - 2),
        ("grpo", N * 2),
        ("dr_grpo", N * MAX_RESPONSE_TOKENS),
        ("rloo", N),
    ],
)
def test_a_masked_response_leaves_the_sums_of_tokens_and_stays_one_of_n(name: str, denominator: int) -> None:
    """Responses 3 and 6 have 5 and 2 tokens; response 0 has 2."""
    groups = with_truncated(scored(REWARDS, LENGTHS), {3, 6})
    samples = by_number(build_training_batch(groups, ObjectiveConfig(name=name, mask_truncated=True)).samples)
    assert samples[0].scale == pytest.approx(1 / denominator)


def test_a_masked_response_counts_for_neither_sign() -> None:
    """There are 4 positive and 7 negative responses, of which one positive and two negative are masked."""
    groups = with_truncated(scored(REWARDS, LENGTHS), {0, 3, 6})
    metrics = build_training_batch(groups, ObjectiveConfig(name="a_hpo", mask_truncated=True)).metrics
    assert metrics["objective/alpha"] == 3 / 5
    assert metrics["objective/positive_fraction"] == 3 / N
    assert metrics["objective/negative_fraction"] == 5 / N
    assert metrics["reward/zero_variance_fraction"] == 1 / 4, (
        "masking does not remove a group's reward variance"
    )


def test_a_batch_that_is_all_masked_has_no_samples() -> None:
    groups = with_truncated(scored(REWARDS, LENGTHS), range(N))
    batch = build_training_batch(
        groups, ObjectiveConfig(mask_truncated=True, kl_coefficient=0.1, entropy_coefficient=0.1)
    )
    assert batch.samples == ()
    assert batch.metrics["objective/alpha"] == 1


@pytest.mark.parametrize("option", [{"kl_coefficient": 0.1}, {"entropy_coefficient": 0.1}])
def test_what_acts_on_every_response_keeps_those_without_an_advantage(option: dict[str, float]) -> None:
    """Masked responses are left out all the same."""
    groups = with_truncated(scored(REWARDS, LENGTHS), {3, 9})
    objective = ObjectiveConfig.model_validate({"mask_truncated": True, **option})
    samples = by_number(build_training_batch(groups, objective).samples)
    assert samples.keys() == set(range(N)) - {3, 9}
    assert samples[8].advantage == 0
    assert samples[8].scale == samples[0].scale


# --- The soft over-long penalty.


def test_an_over_long_response_is_penalized_in_its_advantage_alone() -> None:
    """The group is all correct: 10 tokens allowed, the last 4 penalized, by 0, 0, 1/4 and 1."""
    groups = scored([[1, 1, 1, 1]], [[2, 6, 7, 10]])
    batch = build_training_batch(groups, ObjectiveConfig(name="dr_grpo", overlong_tokens=4))
    mean = 1 - (1 / 4 + 1) / 4
    assert [sample.advantage for sample in batch.samples] == pytest.approx(
        [1 - mean, 1 - mean, 0.75 - mean, -mean]
    )
    assert batch.metrics["reward/overlong_penalty_mean"] == -(1 / 4 + 1) / 4
    assert batch.metrics["reward/zero_variance_fraction"] == 0
    assert groups[0].correct == 4, "the verifier's outcome is what it was"


def test_without_a_penalty_there_is_none() -> None:
    batch = build_training_batch(scored([[1, 1]], [[2, 10]]), ObjectiveConfig())
    assert batch.samples == ()
    assert "reward/overlong_penalty_mean" not in batch.metrics


# --- Batches of an unusual shape.


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    "rewards", [[[1.0]], [[0.1] * 16], [[0.1] * 3], [[0.3] * 7, [0.7] * 7]], ids=["G = 1", "0.1", "3", "two"]
)
def test_a_batch_of_equal_rewards_has_no_gradient_signal(
    name: str, rewards: list[list[float | None]]
) -> None:
    """The rewards include values without an exact binary form, and a group of a single response."""
    for scaling in get_args(Scaling):
        objective = ObjectiveConfig.model_validate({"name": name, "advantage_scaling": scaling})
        batch = build_training_batch(scored(rewards, [[2] * len(sample) for sample in rewards]), objective)
        assert batch.samples == ()
        assert (
            batch.metrics["objective/advantage_mass_positive"]
            == batch.metrics["objective/advantage_mass_negative"]
            == 0
        )
        assert batch.metrics["reward/zero_variance_fraction"] == 1
        if OBJECTIVES[name].uses_alpha_min:
            assert batch.metrics["objective/alpha"] == 1


@pytest.mark.parametrize(
    ("masked", "alpha", "numbers"),
    [({0}, 0.1, [1, 2, 3]), ({1, 2, 3}, 1.0, [0]), (set(range(4)), 1.0, [])],
    ids=["no positives", "no negatives", "all zero"],
)
def test_adaptive_alpha_on_one_sided_batches(masked: set[int], alpha: float, numbers: list[int]) -> None:
    groups = with_truncated(scored([[1, 0, 0, 0]], [[2, 3, 4, 5]]), masked)
    batch = build_training_batch(groups, ObjectiveConfig(name="a_hpo", mask_truncated=True))
    assert batch.metrics["objective/alpha"] == alpha
    assert [int(sample.response_token_ids[0]) for sample in batch.samples] == numbers
    assert all(np.isfinite([sample.advantage, sample.scale]).all() for sample in batch.samples)


@given(
    st.lists(st.lists(st.sampled_from([1.0, 0.0, -1.0]), min_size=4, max_size=4), min_size=1, max_size=4),
    st.data(),
)
def test_a_limit_is_worth_what_the_worst_response_of_its_group_is_worth(
    rewards: list[list[float]], data: st.DataObject
) -> None:
    """A verifier that reaches a limit in place of giving the worst reward of a group (at most 0) changes no advantage,
    as long as another response has that reward, or the reward is 0."""
    groups = scored(rewards, [[2] * 4] * len(rewards))
    limited = []
    for group, values in zip(groups, rewards, strict=True):
        worst = [index for index, value in enumerate(values) if value == min(values) <= 0]
        chosen = [index for index in worst if data.draw(st.booleans())]
        if min(values) < 0:
            chosen = chosen[: len(worst) - 1]
        verdicts = [
            Verdict("limit", 0.0, None, "") if index in chosen else verdict
            for index, verdict in enumerate(group.verdicts)
        ]
        limited.append(replace(group, verdicts=tuple(verdicts)))
    expected, found = (build_training_batch(each, A_HPO) for each in (groups, limited))
    assert [sample.advantage for sample in found.samples] == [sample.advantage for sample in expected.samples]
    assert [sample.response_token_ids.tolist() for sample in found.samples] == [
        sample.response_token_ids.tolist() for sample in expected.samples
    ]


def test_a_limit_without_others_is_worth_nothing() -> None:
    group = scored([[1, 0, 1, 0]], [[2] * 4])[0]
    verdicts = [Verdict("limit", 0.0, None, "") if v.reward == 0 else v for v in group.verdicts]
    samples = by_number(build_training_batch([replace(group, verdicts=tuple(verdicts))], A_HPO).samples)
    assert sorted(samples) == [0, 1, 2, 3], "a limit is trained on"
    assert samples[1].advantage < 0
