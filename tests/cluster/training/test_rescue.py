"""The rescue of prompts that fail: what it adds, its limits, and that nothing changes without it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.types import Prompt, ScoredGroup
from cluster.training.rescue import Rescue
from tests.cluster.training.rescues import (
    ALL,
    MAX_RESPONSE_TOKENS,
    RESPONSES,
    group_of,
    prompt_of,
    rescue_config,
    same_response,
)
from tests.synthetic import synthetic_examples

REWARDS = st.lists(st.sampled_from([0.0, 0.0, 1.0, None]), min_size=RESPONSES, max_size=RESPONSES)
INCORRECT = [0.0] * RESPONSES
SOLVED = [0.0, 1.0, 0.0, 0.0]


def rescue_with(seed: int = 3, **settings: Any) -> Rescue:
    config = rescue_config(seed, **settings)
    return Rescue(config, synthetic_examples(config, rows=9))


def step(rescue: Rescue, groups: list[ScoredGroup], version: int) -> dict[str, float]:
    return rescue.observe(groups, rescue.with_replays(groups, version), version)


# --- Prefixes.


@given(fraction=st.floats(0.01, 1), seed=st.integers(0, 99), success=st.integers(0, 99))
def test_a_prompt_that_fails_begins_some_responses_with_its_success(
    fraction: float, seed: int, success: int
) -> None:
    """At least one token of the success is given, and never all of it. The others begin with nothing."""
    rescue = rescue_with(seed, prefix_fraction=fraction)
    solved = group_of(prompt_of(1), SOLVED, seed=success)
    step(rescue, [solved], 0)
    assert rescue.prepare(prompt_of(1, epoch=1), 1) == prompt_of(1, epoch=1), "it was solved"
    step(rescue, [group_of(prompt_of(1, epoch=1), INCORRECT)], 1)
    found = rescue.prepare(prompt_of(1, epoch=2), 2)
    whole = tuple(solved.responses[1].token_ids.tolist())
    if len(whole) == 1:
        assert found == prompt_of(1, epoch=2)
        return
    assert len(found.prefixes) == max(1, round(fraction * RESPONSES))
    for prefix in found.prefixes:
        assert 0 < len(prefix) < len(whole) <= MAX_RESPONSE_TOKENS
        assert prefix == whole[: len(prefix)]
    assert found.token_ids == prompt_of(1).token_ids
    assert found.helped
    assert rescue.prepare(prompt_of(2), 2) == prompt_of(2), "it was never solved"


def test_a_prompt_keeps_its_prefixes_until_it_is_solved_without_one() -> None:
    rescue = rescue_with(prefix_fraction=0.5)
    step(rescue, [group_of(prompt_of(1), [0.0, 0.0, 0.0, 1.0], seed=5)], 0)
    step(rescue, [group_of(prompt_of(1, 1), INCORRECT)], 1)
    for epoch, rewards in ((2, [1.0, 0.0, 0.0, 0.0]), (3, [0.0, None, 0.0, 1.0])):
        prompt = rescue.prepare(prompt_of(1, epoch), epoch)
        assert len(prompt.prefixes) == 2
        step(rescue, [group_of(prompt, rewards, seed=6)], epoch)
    assert rescue.prepare(prompt_of(1, 4), 4).prefixes == ()


def test_where_every_response_has_a_prefix_they_decide_whether_it_fails() -> None:
    rescue = rescue_with(prefix_fraction=1.0)
    step(rescue, [group_of(prompt_of(1), SOLVED, seed=5)], 0)
    step(rescue, [group_of(prompt_of(1, 1), INCORRECT)], 1)
    prompt = rescue.prepare(prompt_of(1, 2), 2)
    assert len(prompt.prefixes) == RESPONSES
    step(rescue, [group_of(prompt, SOLVED, seed=6)], 2)
    assert rescue.prepare(prompt_of(1, 3), 3).prefixes == ()


def test_prefixes_stay_within_lower_limits_of_a_resumed_run() -> None:
    rescue = rescue_with(prefix_fraction=1.0)
    step(rescue, [group_of(prompt_of(1), SOLVED, seed=5)], 0)
    step(rescue, [group_of(prompt_of(1, 1), INCORRECT)], 1)
    rescue.prepare(prompt_of(1, 2), 2)
    lower = prompt_of(1, 2)
    sampling = type(lower.sampling)(2, 1.0, 2, None)
    again = rescue.prepare(Prompt(lower.id, lower.text, lower.token_ids, None, sampling), 2)
    assert [len(prefix) for prefix in again.prefixes] == [1, 1]


# --- Replays.


@given(limit=st.integers(1, 5), version=st.integers(0, 8), rewards=REWARDS)
def test_an_all_incorrect_group_gets_a_success_that_is_young_enough(
    limit: int, version: int, rewards: list[float | None]
) -> None:
    """It is added as it was sampled, bit for bit, and the sampled group stays what it was."""
    rescue = rescue_with(replay_max_age_steps=limit)
    solved = group_of(prompt_of(1), SOLVED, version=2, seed=5)
    sampled_with = solved.responses[1].min_version
    step(rescue, [solved], 2)
    group = group_of(prompt_of(1, 1), rewards, version)
    wanted = group.valid > 0 and group.correct == 0 and version - sampled_with <= limit
    assert rescue.is_rescued(group, version) == wanted
    (found,) = rescue.with_replays([group], version)
    if not wanted:
        assert found is group
        return
    *responses, replay = found.responses
    assert tuple(responses) == group.responses
    assert found.verdicts[:-1] == group.verdicts
    assert found.verdicts[-1].outcome == "correct"
    assert found.verdicts[-1].reward == 1.0
    assert replay.replayed_from == solved.prompt.token_ids
    original = solved.responses[1]
    assert replay.logprobs is original.logprobs
    assert replay.token_ids is original.token_ids
    assert version - replay.min_version <= limit
    assert found.helped
    assert not group.helped, "as it was sampled, it is evidence"


@pytest.mark.parametrize(
    ("section", "limit", "margin"),
    [("rollout", "max_response_tokens", 0), ("model", "max_context_tokens", 3)],
)
def test_a_replay_stays_within_lower_limits_of_a_resumed_run(section: str, limit: str, margin: int) -> None:
    """The prompt has 3 tokens."""
    solved = group_of(prompt_of(1), SOLVED, seed=5)
    length = solved.responses[1].whole_length + margin
    for value, replays in ((length, 1), (length - 1, 0)):
        config = rescue_config(replay_max_age_steps=2)
        part = getattr(config, section).model_copy(update={limit: value})
        rescue = Rescue(config.model_copy(update={section: part}))
        step(rescue, [solved], 0)
        (found,) = rescue.with_replays([group_of(prompt_of(1, 1), INCORRECT)], 1)
        assert len(found.responses) == RESPONSES + replays


def test_a_replay_is_not_a_success_of_its_own() -> None:
    """Otherwise it would become younger with every use."""
    rescue = rescue_with(replay_max_age_steps=2)
    solved = group_of(prompt_of(1), SOLVED, version=0, seed=5)
    step(rescue, [solved], 0)
    oldest = solved.responses[1].min_version
    found = []
    for version in range(5):
        group = group_of(prompt_of(1, version + 1), INCORRECT, version)
        found.append(len(rescue.with_replays([group], version)[0].responses) - RESPONSES)
        step(rescue, [group], version)
    assert found == [int(version - oldest <= 2) for version in range(5)]


# --- Examples.


def test_a_prompt_has_one_kind_of_help() -> None:
    rescue = rescue_with(**ALL | {"examples_fraction": 1.0})
    first = rescue.prepare(prompt_of(1), 0)
    assert first.has_examples
    assert first.helped
    step(rescue, [group_of(first, SOLVED, seed=5)], 0)
    step(rescue, [group_of(rescue.prepare(prompt_of(1, 1), 0), INCORRECT)], 0)
    second = rescue.prepare(prompt_of(1, 2), 0)
    assert second.prefixes
    assert not second.has_examples


# --- Everything off.


@given(history=st.lists(st.tuples(st.integers(0, 3), REWARDS), max_size=12))
def test_nothing_changes_while_every_method_is_off(
    history: list[tuple[int, list[float | None]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rescue = Rescue(rescue_config())
    for version, (row, rewards) in enumerate(history):
        prompt = prompt_of(row, version)
        assert rescue.prepare(prompt, version) is prompt
        group = group_of(prompt, rewards, version)
        assert rescue.with_replays([group], version) == (group,)
        assert rescue.with_replays([group], version)[0] is group
        assert not rescue.is_rescued(group, version)
        assert rescue.observe([group], [group], version) == {}
    directory = tmp_path_factory.mktemp("checkpoint")
    rescue.save(directory, [])
    assert list(directory.iterdir()) == []


# --- Metrics.


def test_the_metrics_count_what_each_method_did() -> None:
    rescue = rescue_with(**ALL | {"examples_fraction": 1.0})
    plain = group_of(prompt_of(1), SOLVED, seed=5)
    assert step(rescue, [plain], 0)["rescue/known_successes"] == 1
    step(rescue, [group_of(prompt_of(1, 1), INCORRECT)], 1)
    prefixed = rescue.prepare(prompt_of(1, 2), 2)
    shown = rescue.prepare(prompt_of(2, 2), 2)
    groups = [
        group_of(prefixed, [1.0, 0.0, 0.0, 0.0], 2),
        group_of(shown, [1.0, 1.0, 1.0, None], 2),
        group_of(prompt_of(1, 3), INCORRECT, 2),
        group_of(prompt_of(4, 3), INCORRECT, 2),
    ]
    (success,) = [success for _, success in rescue._successes]
    assert step(rescue, groups, 2) == pytest.approx(
        {
            "rescue/known_successes": 2,
            "rescue/prefixed_fraction": 2 / 16,
            "rescue/prefix_correct_fraction": 1 / 2,
            "rescue/prefix_informative_fraction": 1,
            "rescue/examples_probability": 0.5,
            "rescue/example_fraction": 1 / 4,
            "rescue/example_correct_fraction": 1,
            "rescue/example_informative_fraction": 0,
            "rescue/replayed_fraction": 1 / 4,
            "rescue/replay_age_mean": 2 - success.response.min_version,
        }
    )


def test_the_order_of_the_groups_does_not_matter() -> None:
    """Dropped groups come in the order in which they were scored, which depends on the workers."""
    groups = [group_of(prompt_of(1, epoch), SOLVED, seed=epoch) for epoch in range(3)]
    found = []
    for order in (groups, groups[::-1]):
        rescue = rescue_with(**ALL)
        step(rescue, order, 0)
        ((_, success),) = rescue._successes
        found.append(success.response)
    assert same_response(*found)
    assert same_response(found[0], groups[2].responses[1])
