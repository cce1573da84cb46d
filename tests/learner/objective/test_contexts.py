"""The context of a response: its prompt and the prefix that it was given. Nothing is learned from a context."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.config import ObjectiveConfig
from cluster.core.types import Response, ScoredGroup
from learner.model.batching import Packing, shard
from learner.objective.objectives import OBJECTIVES
from learner.objective.training_batch import build_training_batch
from tests.builders import make_group, make_prompt, make_response

PREFIXES = st.lists(st.lists(st.integers(20, 25), max_size=4).map(tuple), min_size=4, max_size=4)
EVERY = {"kl_coefficient": 0.1}
"""An option that keeps all responses in the batch."""


def group_with(prefixes: list[tuple[int, ...]], rewards: list[float]) -> ScoredGroup:
    responses = [
        replace(make_response([10 + number] * (number + 1)), prefix=prefix)
        for number, prefix in enumerate(prefixes)
    ]
    return make_group(rewards, responses, replace(make_prompt(), prefixes=tuple(prefixes)))


def without_prefixes(group: ScoredGroup) -> ScoredGroup:
    plain = tuple(replace(response, prefix=()) for response in group.responses)
    return replace(group, group=replace(group.group, responses=plain))


@pytest.mark.parametrize("name", OBJECTIVES)
@given(prefixes=PREFIXES)
def test_a_prefix_is_context_and_changes_no_weight(name: str, prefixes: list[tuple[int, ...]]) -> None:
    """Tokens, log-probabilities, advantages and scales are those of the sampled tokens alone."""
    config = ObjectiveConfig.model_validate({"name": name, **EVERY})
    group = group_with(prefixes, [1.0, 0.0, 0.0, 1.0])
    given_, plain = (build_training_batch([each], config, 16) for each in (group, without_prefixes(group)))
    assert given_.metrics == plain.metrics
    for response, one, other in zip(group.responses, given_.samples, plain.samples, strict=True):
        assert one.prompt_token_ids.tolist() == [5, 6, 7, *response.prefix]
        assert one.response_token_ids.tolist() == response.token_ids.tolist()
        assert one.sampler_logprobs is response.logprobs
        assert (one.advantage, one.scale) == (other.advantage, other.scale)


def test_the_over_long_penalty_counts_the_whole_response() -> None:
    """10 tokens are allowed, and the last 4 are penalized."""
    group = group_with([(20,) * 6, (20,) * 5, (), ()], [1.0, 1.0, 1.0, 1.0])
    batch = build_training_batch([group], ObjectiveConfig(overlong_tokens=4), 10)
    assert batch.metrics["reward/overlong_penalty_mean"] == pytest.approx(-(1 / 4 + 1 / 4) / 4)


@given(prefixes=PREFIXES, sharing=st.sampled_from(["auto", "on", "off"]))
def test_only_responses_with_the_same_context_are_computed_together(
    prefixes: list[tuple[int, ...]], sharing: str
) -> None:
    batch = build_training_batch(
        [group_with(prefixes, [1.0, 0.0, 0.0, 1.0])], ObjectiveConfig.model_validate(EVERY), 16
    )
    ((*micro_batches,),) = shard(batch.samples, 1, Packing(64, sharing))  # type: ignore[arg-type]
    bundles = [bundle for micro_batch in micro_batches for bundle in micro_batch]
    for bundle in bundles:
        assert len({sample.prompt_token_ids.tobytes() for sample in bundle}) == 1
    assert sorted(int(sample.response_token_ids[0]) for bundle in bundles for sample in bundle) == [
        10,
        11,
        12,
        13,
    ]


@given(prefixes=PREFIXES)
def test_no_token_of_a_prefix_is_predicted_in_the_loss(prefixes: list[tuple[int, ...]]) -> None:
    """The loss sums over `response_mask_BT`, and each of its tokens has one predicting column."""
    import torch

    from learner.model.policy import TokenBatch

    batch = build_training_batch(
        [group_with(prefixes, [1.0, 0.0, 0.0, 1.0])], ObjectiveConfig.model_validate(EVERY), 16
    )
    tensors = TokenBatch.from_samples(batch.samples, torch.device("cpu"))
    predicted = tensors.response_ids_BT[tensors.response_mask_BT]
    assert len(tensors.predictors_N) == len(predicted) == 1 + 2 + 3 + 4
    assert (predicted < 20).all(), "tokens from 20 on are in prefixes alone"
    width = tensors.input_ids_SL.shape[1]
    for number, (start, prefix) in enumerate(zip(np.cumsum([0, 1, 2, 3]), prefixes, strict=True)):
        assert tensors.predictors_N[start] == number * width + 3 + len(prefix) - 1


def test_a_replay_keeps_its_own_prompt_and_log_probabilities() -> None:
    """It counts in the mean and the size of its group, and is marked for the comparison with the sampler."""
    replay: Response = replace(
        make_response([30, 31], logprobs=[-0.25, -0.75]), prefix=(20,), replayed_from=(8, 9)
    )
    group = make_group([0.0, 0.0, 0.0, 1.0], [make_response([10]) for _ in range(3)] + [replay])
    batch = build_training_batch([group], ObjectiveConfig(name="hpo", advantage_scaling="none"), 16)
    assert [sample.is_replay for sample in batch.samples] == [False, False, False, True]
    sample = batch.samples[-1]
    assert sample.prompt_token_ids.tolist() == [8, 9, 20]
    assert sample.sampler_logprobs is replay.logprobs
    assert sample.advantage == 1 - 1 / 4
    assert sample.scale == 1 / 5
    assert group.helped
    assert not make_group().helped
