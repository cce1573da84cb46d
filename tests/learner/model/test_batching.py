"""Cutting a batch: no sample is lost or doubled, memory is bounded, all ranks run the same number of micro-batches, and
the cost is minimal."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.types import TrainingSample
from learner.model.batching import (
    EMPTY,
    Bundle,
    ForwardCost,
    MicroBatch,
    Packing,
    computed_tokens,
    own_pairs,
    shard,
)


def make_sample(number: int, prompt: int, prompt_tokens: int, response_tokens: int) -> TrainingSample:
    """Make a sample identified by `number`. Samples with the same `prompt` and `prompt_tokens` share their prompt."""
    zeros = np.zeros(response_tokens, dtype=np.float32)
    return TrainingSample(np.full(prompt_tokens, prompt), np.full(response_tokens, number), zeros, 1.0, 0.1)


def make_samples(groups: Sequence[tuple[int, Sequence[int]]]) -> list[TrainingSample]:
    """Make samples from groups given as (tokens of the prompt, tokens of the responses)."""
    flat = [(prompt, tokens, length) for prompt, (tokens, lengths) in enumerate(groups) for length in lengths]
    return [make_sample(number, *sizes) for number, sizes in enumerate(flat)]


GROUPS = st.lists(
    st.tuples(st.integers(1, 30), st.lists(st.integers(1, 60), min_size=1, max_size=9)), max_size=12
)
SAMPLES = GROUPS.map(make_samples)
RANKS = st.integers(1, 5)
PACKING = st.builds(
    Packing,
    micro_batch_tokens=st.integers(1, 400),
    prefix_sharing=st.sampled_from(["auto", "on", "off"]),
    cost=st.builds(ForwardCost, st.floats(0, 0.1), st.floats(0, 100), st.booleans()),
)


def numbers(micro_batches: Sequence[MicroBatch]) -> list[int]:
    return [
        int(sample.response_token_ids[0])
        for batch in micro_batches
        for bundle in batch
        for sample in bundle
        if sample.scale
    ]


def width(batch: MicroBatch) -> int:
    return max(computed_tokens(bundle) for bundle in batch)


def padded_tokens(batch: MicroBatch) -> int:
    return len(batch) * width(batch)


def tokens(batch: MicroBatch) -> int:
    return 0 if batch is EMPTY else sum(computed_tokens(bundle) for bundle in batch)


def all_bundles(shards: Sequence[Sequence[MicroBatch]]) -> list[Bundle]:
    return [bundle for batches in shards for batch in batches if batch is not EMPTY for bundle in batch]


def cost_of(batch: MicroBatch, cost: ForwardCost) -> float:
    """Compute the cost from its definition."""
    prompt = min(len(bundle[0].prompt_token_ids) for bundle in batch)
    shared = any(len(bundle) > 1 for bundle in batch)
    rest = width(batch) - prompt
    own = max(own_pairs(bundle, cost.packed) for bundle in batch)
    pairs = prompt**2 / 2 + rest * prompt + own if shared else width(batch) ** 2 / 2
    return cost.per_micro_batch + len(batch) * (width(batch) + cost.per_pair * pairs)


# --- Laws of every cut


@given(SAMPLES, RANKS, PACKING)
def test_every_sample_is_in_one_shard_once(
    samples: list[TrainingSample], ranks: int, packing: Packing
) -> None:
    shards = shard(samples, ranks, packing)
    assert len(shards) == ranks
    assert sorted(number for batches in shards for number in numbers(batches)) == list(range(len(samples)))


@given(SAMPLES, RANKS, PACKING)
def test_samples_of_a_bundle_have_one_prompt(
    samples: list[TrainingSample], ranks: int, packing: Packing
) -> None:
    for bundle in all_bundles(shard(samples, ranks, packing)):
        assert len({sample.prompt_token_ids.tobytes() for sample in bundle}) == 1


@given(SAMPLES, RANKS, PACKING)
def test_a_micro_batch_stays_within_its_tokens_unless_it_is_one_sample(
    samples: list[TrainingSample], ranks: int, packing: Packing
) -> None:
    for batch in itertools.chain(*shard(samples, ranks, packing)):
        assert padded_tokens(batch) <= packing.micro_batch_tokens or sum(map(len, batch)) == 1


@given(SAMPLES, RANKS, PACKING)
def test_all_ranks_have_equally_many_micro_batches_and_at_least_one(
    samples: list[TrainingSample], ranks: int, packing: Packing
) -> None:
    shards = shard(samples, ranks, packing)
    assert len({len(batches) for batches in shards}) == 1
    assert len(shards[0]) >= 1


@given(SAMPLES, RANKS, PACKING)
def test_empty_micro_batches_are_only_for_want_of_others(
    samples: list[TrainingSample], ranks: int, packing: Packing
) -> None:
    """Only in the last round, and not on all ranks."""
    shards = shard(samples, ranks, packing)
    assert all(batch is not EMPTY for batches in shards for batch in batches[:-1])
    assert not samples or any(batches[-1] is not EMPTY for batches in shards)


@given(SAMPLES, RANKS, PACKING)
def test_ranks_compute_the_same_to_within_one_bundle(
    samples: list[TrainingSample], ranks: int, packing: Packing
) -> None:
    """In total and, so that no rank waits for another, in the padded tokens of each round."""
    shards = shard(samples, ranks, packing)
    widest = max(map(computed_tokens, all_bundles(shards)), default=0)
    sums = [sum(map(tokens, batches)) for batches in shards]
    assert max(sums) - min(sums) <= widest
    for turn in zip(*shards, strict=True):
        sizes = [len(batch) if batch is not EMPTY else 0 for batch in turn]
        assert max(sizes) - min(sizes) <= 1


@given(RANKS, PACKING)
def test_without_samples_every_rank_runs_one_empty_micro_batch(ranks: int, packing: Packing) -> None:
    assert shard([], ranks, packing) == [[EMPTY]] * ranks


def test_the_empty_micro_batch_bears_no_loss() -> None:
    """Its effect on the model is tested in test_update.py."""
    ((sample,),) = EMPTY
    assert sample.scale == sample.advantage == 0
    assert sample.tokens == 2, "a token to predict, and one to predict it from"


# --- The cost


def mixed_samples(seed: int, groups: int, responses: int) -> list[TrainingSample]:
    """Draw lengths that are typical of language models: most are short, some very long, some truncated at a limit."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(np.log(150), 0.8, (groups, responses)), 8, 1024).astype(int)
    prompts = generator.integers(60, 240, groups)
    return make_samples(
        [(int(prompt), sample.tolist()) for prompt, sample in zip(prompts, lengths, strict=True)]
    )


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["auto", "on", "off"]),
    st.sampled_from([4096, 16384]),
)
def test_padding_is_at_most_a_tenth_on_a_mixed_batch(
    seed: int, ranks: int, sharing: Any, budget: int
) -> None:
    shards = shard(mixed_samples(seed, 32, 16), ranks, Packing(budget, sharing, ForwardCost(per_pair=1e-4)))
    computed = sum(padded_tokens(batch) for batches in shards for batch in batches)
    useful = sum(tokens(batch) for batches in shards for batch in batches)
    assert computed <= 1.1 * useful


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([2, 4]), st.sampled_from(["auto", "on", "off"]))
def test_ranks_are_balanced_on_a_mixed_batch(seed: int, ranks: int, sharing: Any) -> None:
    """The duration of a step is that of the slowest rank in each round, summed over the rounds."""
    shards = shard(mixed_samples(seed, 32, 16), ranks, Packing(16384, sharing, ForwardCost(per_pair=1e-4)))
    slowest = sum(max(padded_tokens(batch) for batch in turn) for turn in zip(*shards, strict=True))
    everything = sum(padded_tokens(batch) for batches in shards for batch in batches)
    assert slowest <= 1.1 * everything / ranks


def partitions(items: Sequence[Any]) -> Iterator[list[Sequence[Any]]]:
    """Enumerate all ways to cut a sequence into ranges."""
    for count in range(len(items)):
        for cuts in itertools.combinations(range(1, len(items)), count):
            yield [items[start:end] for start, end in itertools.pairwise([0, *cuts, len(items)])]


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.lists(st.integers(1, 60), min_size=1, max_size=1)),
        min_size=1,
        max_size=7,
    ),
    st.integers(50, 300),
    st.floats(0, 0.05),
    st.floats(0, 100),
)
def test_no_other_cut_of_the_sorted_samples_costs_less(
    groups: list[tuple[int, list[int]]], budget: int, per_pair: float, per_micro_batch: float
) -> None:
    """One response per prompt, so there is nothing to share."""
    cost = ForwardCost(per_pair, per_micro_batch)
    (batches,) = shard(make_samples(groups), 1, Packing(budget, "auto", cost))
    bundles = [bundle for batch in batches for bundle in batch]
    allowed = [
        sum(cost_of(tuple(run), cost) for run in runs)
        for runs in partitions(bundles)
        if all(padded_tokens(tuple(run)) <= budget or len(run) == 1 for run in runs)
    ]
    assert sum(cost_of(batch, cost) for batch in batches) == pytest.approx(min(allowed))


# --- The choice of sharing a prompt


def shared_samples(samples: Sequence[TrainingSample], ranks: int, packing: Packing) -> Counter[int]:
    """Count the bundles by their number of samples."""
    return Counter(map(len, all_bundles(shard(samples, ranks, packing))))


LONG_PROMPTS = make_samples([(500, [20] * 8)] * 4)


def test_a_long_prompt_is_computed_once() -> None:
    assert shared_samples(LONG_PROMPTS, 1, Packing(16384)) == {8: 4}


def test_and_as_often_as_there_are_responses_if_sharing_is_off() -> None:
    assert shared_samples(LONG_PROMPTS, 1, Packing(16384, "off")) == {1: 32}


def test_a_group_is_cut_where_its_micro_batch_ends() -> None:
    """500 + 4 × 19 tokens fit; five responses do not fit."""
    assert shared_samples(LONG_PROMPTS, 1, Packing(576)) == {4: 8}


def test_a_group_is_cut_for_ranks_that_would_have_nothing_to_do() -> None:
    assert shared_samples(LONG_PROMPTS[:8], 2, Packing(16384)) == {4: 2}


@pytest.mark.parametrize(
    ("packed", "shortest"),
    [(False, 16), (True, 16), (True, 1)],
    ids=["rows", "packed", "packed, lengths differ"],
)
@pytest.mark.parametrize("tokens", [1024, 4096, 16384, 32768])
def test_long_responses_share_their_prompt_too(tokens: int, packed: bool, shortest: int) -> None:
    """No response is compared with another one, so a longer one is no reason to compute its prompt again. Where
    responses are padded to the longest, a group of long and short ones may cost more together."""
    samples = make_samples([(100, [tokens * max(i, shortest) // 16 for i in range(1, 17)])])
    cost = ForwardCost(per_pair=3e-4, packed=packed)
    assert shared_samples(samples, 1, Packing(10**6, "auto", cost)) == {16: 1}


def test_only_what_attention_pads_counts_as_pairs() -> None:
    (bundle,) = (tuple(make_samples([(7, [11, 4, 1])])),)
    assert own_pairs(bundle, packed=False) == 3 * 10**2 / 2
    assert own_pairs(bundle, packed=True) == (10**2 + 3**2) / 2


def test_samples_with_one_prompt_are_together_wherever_they_come_from() -> None:
    """This happens if some responses of a group are left out, or if a prompt was admitted twice."""
    samples = [make_sample(0, 7, 100, 5), make_sample(1, 8, 100, 5), make_sample(2, 7, 100, 6)]
    assert sorted(
        sorted(numbers([(bundle,)])) for bundle in all_bundles(shard(samples, 1, Packing(1000)))
    ) == [
        [0, 2],
        [1],
    ]


@settings(max_examples=50)
@given(SAMPLES, PACKING)
def test_choosing_costs_no_more_than_either_way_alone(
    samples: list[TrainingSample], packing: Packing
) -> None:
    def cost(sharing: Any) -> float:
        (batches,) = shard(samples, 1, Packing(packing.micro_batch_tokens, sharing, packing.cost))
        return sum(cost_of(batch, packing.cost) for batch in batches)

    assert cost("auto") <= min(cost("on"), cost("off")) * (1 + 1e-9)
