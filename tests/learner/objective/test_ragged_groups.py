"""Batches whose groups have different numbers of responses: no padding is counted anywhere."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.config import ObjectiveConfig
from cluster.core.types import ScoredGroup, TrainingBatch
from learner.objective.objectives import OBJECTIVES, Scaling, resolve
from learner.objective.training_batch import STD_EPSILON, build_training_batch, group_advantages, hysteretic
from tests.builders import make_group, make_prompt, make_response

L_MAX = 12
REWARD = st.sampled_from([0.0, 1.0, 0.5, None])
RESPONSE = st.tuples(REWARD, st.integers(1, L_MAX), st.booleans())
"""The reward of a response, its length, and whether it was truncated."""
GROUPS = st.lists(st.lists(RESPONSE, min_size=1, max_size=9), min_size=1, max_size=5)
NAME, SCALING = st.sampled_from(list(OBJECTIVES)), st.sampled_from(get_args(Scaling))
Described = Sequence[tuple[float | None, int, bool]]


def scored(groups: Sequence[Described]) -> list[ScoredGroup]:
    """Return the groups. The first token of a response is its number in the batch, and prompts have their own ids."""
    number = iter(range(10_000))
    return [
        make_group(
            [reward for reward, _, _ in group],
            [
                make_response([next(number)] * length, finish_reason="length" if truncated else "stop")
                for _, length, truncated in group
            ],
            make_prompt(token_ids=(place,)),
        )
        for place, group in enumerate(groups)
    ]


def objective(name: str, scaling: str, mask_truncated: bool) -> ObjectiveConfig:
    values: dict[str, Any] = {"name": name, "advantage_scaling": scaling, "mask_truncated": mask_truncated}
    if OBJECTIVES[name].uses_alpha:
        values["alpha"] = 0.6
    return ObjectiveConfig.model_validate(values | {"kl_coefficient": 0.1})  # it keeps all responses


def deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def written_out(groups: Sequence[Described], config: ObjectiveConfig) -> list[tuple[float, float]]:
    """Return the advantage (before α) and the scale of every response, group by group, without any array."""
    centered: list[list[float | None]] = []
    for group in groups:
        rewards = [reward for reward, _, _ in group if reward is not None]
        varied = len(set(rewards)) > 1
        mean = statistics.fmean(rewards) if rewards else 0.0
        centered.append([None if reward is None else (reward - mean) * varied for reward, _, _ in group])
    everywhere = [value for values in centered for value in values if value is not None]
    informative = [value for values in centered if any(values) for value in values if value is not None]
    masked = config.mask_truncated
    sizes = sum(map(len, groups))
    tokens = sum(length for group in groups for _, length, truncated in group if not (masked and truncated))
    rule = resolve(config).scale_rule.__name__
    found = []
    for group, values in zip(groups, centered, strict=True):
        own = [value for value in values if value is not None]
        others = max(len(own) - 1, 1)
        mean = statistics.fmean([reward for reward, _, _ in group if reward is not None] or [0.0])
        factor = {
            "group": 1 / (deviation(own) + STD_EPSILON),
            "batch": 1 / (deviation(informative) + STD_EPSILON),
            "whole_batch": 1 / (deviation(everywhere) + STD_EPSILON),
            "mean": 1 / mean if mean > 0 else 0.0,
            "leave_one_out": 1 + 1 / others,
            "none": 1.0,
        }[resolve(config).advantage_scaling]
        for (_, length, truncated), value in zip(group, values, strict=True):
            left_out = masked and truncated
            scale = {
                "mean_of_means": 1 / (sizes * (1 if left_out else length)),
                "mean_of_sums": 1 / sizes,
                "mean_over_tokens": 1 / max(tokens, 1),
                "constant_length": 1 / (sizes * L_MAX),
            }[rule]
            found.append((0.0 if left_out else factor * (value or 0.0), scale))
    return found


def weights(batch: TrainingBatch) -> dict[int, tuple[float, float]]:
    """Return the advantage and the scale of each sample, by the number of its response."""
    return {int(sample.response_token_ids[0]): (sample.advantage, sample.scale) for sample in batch.samples}


@given(GROUPS, NAME, SCALING, st.booleans())
def test_every_objective_is_its_formula_written_out_group_by_group(
    groups: list[list[tuple[float | None, int, bool]]], name: str, scaling: str, mask: bool
) -> None:
    config = objective(name, scaling, mask)
    expected = written_out(groups, config)
    batch = build_training_batch(scored(groups), config, L_MAX)
    n = len(expected)
    positive = sum(advantage > 1e-9 for advantage, _ in expected)
    negative = sum(advantage < -1e-9 for advantage, _ in expected)
    alpha = 1.0
    if OBJECTIVES[name].uses_alpha:
        alpha = config.alpha
    elif OBJECTIVES[name].uses_alpha_min and negative:
        alpha = min(max(positive / negative, config.alpha_min), 1.0)
    kept = [not (mask and truncated) for group in groups for _, _, truncated in group]
    assert batch.metrics["objective/alpha"] == pytest.approx(alpha)
    assert batch.metrics["objective/positive_fraction"] == pytest.approx(positive / n)
    assert batch.metrics["objective/negative_fraction"] == pytest.approx(negative / n)
    mass = sum(advantage for advantage, _ in expected if advantage > 0) / n
    assert batch.metrics["objective/advantage_mass_positive"] == pytest.approx(mass)
    assert weights(batch) == {
        number: (
            pytest.approx(advantage * (alpha if advantage < 0 else 1.0), rel=1e-6, abs=1e-9),
            pytest.approx(scale),
        )
        for number, (advantage, scale) in enumerate(expected)
        if kept[number]
    }


@given(st.integers(1, 5), st.integers(1, 20), NAME, SCALING, st.booleans(), st.data())
def test_groups_of_equal_size_get_exactly_what_they_get_without_padding(
    prompts: int, size: int, name: str, scaling: str, mask: bool, data: st.DataObject
) -> None:
    """Not one bit differs, so runs without a budget train as they did before groups could differ."""
    groups = data.draw(
        st.lists(st.lists(RESPONSE, min_size=size, max_size=size), min_size=prompts, max_size=prompts)
    )
    config = objective(name, scaling, mask)
    resolved = resolve(config)
    rewards = np.array([[reward or 0.0 for reward, _, _ in group] for group in groups])
    valid = np.array([[reward is not None for reward, _, _ in group] for group in groups])
    masked = np.array([[truncated and mask for _, _, truncated in group] for group in groups])
    lengths = np.array([[length for _, length, _ in group] for group in groups])
    batch = build_training_batch(scored(groups), config, L_MAX)
    in_group = group_advantages(rewards, valid, resolved.advantage_scaling)
    advantages = hysteretic(np.where(masked, 0.0, in_group), batch.metrics["objective/alpha"])
    scales = resolved.scale_rule(np.where(masked, 0, lengths), L_MAX)
    expected = zip(advantages.flat, scales.flat, strict=True)
    kept = ~masked.ravel()
    assert weights(batch) == {number: pair for number, pair in enumerate(expected) if kept[number]}


@given(GROUPS, NAME, SCALING, st.randoms(use_true_random=False))
def test_the_order_of_the_groups_does_not_matter(
    groups: list[list[tuple[float | None, int, bool]]], name: str, scaling: str, chance: random.Random
) -> None:
    config = objective(name, scaling, mask_truncated=True)
    whole = scored(groups)
    batch = build_training_batch(whole, config, L_MAX)
    chance.shuffle(whole)
    shuffled = build_training_batch(whole, config, L_MAX)
    assert shuffled.metrics == pytest.approx(batch.metrics)
    assert weights(shuffled) == {
        number: (pytest.approx(advantage, rel=1e-6, abs=1e-9), pytest.approx(scale))
        for number, (advantage, scale) in weights(batch).items()
    }


def test_the_mean_penalty_is_that_of_the_responses() -> None:
    """Padding has no length and no penalty, and would lower the mean."""
    groups = scored([[(1.0, L_MAX, False)], [(1.0, L_MAX, False)] * 3])
    batch = build_training_batch(groups, ObjectiveConfig(overlong_tokens=4), L_MAX)
    assert batch.metrics["reward/overlong_penalty_mean"] == -1


@given(st.lists(RESPONSE, min_size=2, max_size=9), st.integers(1, 30), NAME)
def test_a_group_that_was_extended_in_vain_counts_as_responses_and_as_nothing_else(
    group: list[tuple[float | None, int, bool]], extra: int, name: str
) -> None:
    """Its incorrect responses have no advantage. They are in N and in the tokens, and leave the advantages of the other
    group and α as they are."""
    config = objective(name, "group", mask_truncated=False)
    failed: list[tuple[float | None, int, bool]] = [(0.0, 5, False)] * 2
    short, long = (
        build_training_batch(scored([group, [*failed, *more]]), config, L_MAX)
        for more in ([], [(0.0, 5, False)] * extra)
    )
    numbers = range(len(group))
    assert [weights(long)[number][0] for number in numbers] == pytest.approx(
        [weights(short)[number][0] for number in numbers]
    )
    assert long.metrics["objective/alpha"] == pytest.approx(short.metrics["objective/alpha"])
    assert all(weights(long)[number][1] < weights(short)[number][1] for number in numbers)
