"""Cutting a batch: nothing is lost or doubled, memory stays bounded, and all ranks take equally many turns."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learner.batching import EMPTY, MicroBatch, cut, shard
from learner.weighing import Row


def make_row(number: int, prompt_tokens: int, response_tokens: int) -> Row:
    """`number` tells it apart."""
    zeros = np.zeros(response_tokens, dtype=np.float32)
    return Row(np.full(prompt_tokens, number), np.full(response_tokens, number), zeros, 1.0, 0.1)


ROWS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 60)), max_size=40).map(
    lambda sizes: [make_row(number, *size) for number, size in enumerate(sizes)]
)
BUDGET = st.integers(1, 400)


def numbers(micro_batches: Sequence[MicroBatch]) -> list[int]:
    return [int(row.prompt_token_ids[0]) for rows in micro_batches for row in rows if row.scale]


def computed_tokens(rows: MicroBatch) -> int:
    """Padding included."""
    prompt_width = max(len(row.prompt_token_ids) for row in rows)
    return len(rows) * (prompt_width + max(len(row.response_token_ids) for row in rows))


@given(ROWS, BUDGET)
def test_cut_keeps_every_row_once(rows: list[Row], budget: int) -> None:
    micro_batches = cut(rows, budget)
    assert sorted(numbers(micro_batches)) == list(range(len(rows)))
    assert all(micro_batches), "no micro-batch is without rows"


@given(ROWS, BUDGET)
def test_a_micro_batch_stays_within_its_budget_unless_it_is_one_row(rows: list[Row], budget: int) -> None:
    assert all(len(batch) == 1 or computed_tokens(batch) <= budget for batch in cut(rows, budget))


@given(ROWS, BUDGET)
def test_a_row_is_put_into_a_micro_batch_while_it_fits(rows: list[Row], budget: int) -> None:
    """No micro-batch could have taken the first row of the next one too."""
    micro_batches = cut(rows, budget)
    for batch, following in itertools.pairwise(micro_batches):
        assert computed_tokens((*batch, following[0])) > budget


@given(ROWS, st.integers(1, 7), BUDGET)
def test_shards_hold_every_row_once(rows: list[Row], ranks: int, budget: int) -> None:
    shards = shard(rows, ranks, budget)
    assert len(shards) == ranks
    assert sorted(number for micro_batches in shards for number in numbers(micro_batches)) == list(
        range(len(rows))
    )


@given(ROWS, st.integers(1, 7), BUDGET)
def test_all_ranks_have_equally_many_micro_batches_and_at_least_one(
    rows: list[Row], ranks: int, budget: int
) -> None:
    shards = shard(rows, ranks, budget)
    assert len({len(micro_batches) for micro_batches in shards}) == 1
    assert len(shards[0]) >= 1


@given(ROWS, st.integers(1, 7), BUDGET)
def test_empty_micro_batches_are_only_for_want_of_others(rows: list[Row], ranks: int, budget: int) -> None:
    """Some rank has work in every turn, and each rank works before it idles."""
    shards = shard(rows, ranks, budget)
    idle = [[batch is EMPTY for batch in micro_batches] for micro_batches in shards]
    assert all(turns == sorted(turns) for turns in idle)
    assert not rows or any(not any(turns) for turns in idle)


@given(ROWS, st.integers(1, 7))
def test_rows_are_spread_evenly_over_ranks(rows: list[Row], ranks: int) -> None:
    """In number by at most one, and in tokens by no more than the longest row."""
    shards = shard(rows, ranks, 10**6)
    counts = [len(numbers(micro_batches)) for micro_batches in shards]
    tokens = [sum(row.tokens for rows in batches for row in rows if row.scale) for batches in shards]
    assert max(counts) - min(counts) <= 1
    assert max(tokens) - min(tokens) <= max((row.tokens for row in rows), default=0)


@given(st.integers(1, 7), BUDGET)
def test_without_rows_every_rank_runs_one_empty_micro_batch(ranks: int, budget: int) -> None:
    assert shard([], ranks, budget) == [[EMPTY]] * ranks


def test_the_empty_micro_batch_bears_no_loss() -> None:
    """What it computes is tested with the model, in test_objectives.py."""
    (row,) = EMPTY
    assert row.scale == row.advantage == 0
    assert row.tokens == 2, "a token to predict, and one to predict it from"
