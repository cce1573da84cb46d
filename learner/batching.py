"""Cut a weighed batch into micro-batches, by tokens, the same number for every rank. Pure: rows in, rows out.

Every rank runs as many micro-batches as the others, because backward is a collective under ZeRO 2 and 3. Where one
has fewer, it runs an empty one: a single token whose scale is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learner.weighing import Row

MicroBatch = tuple[Row, ...]

EMPTY: MicroBatch = (
    Row(
        prompt_token_ids=np.zeros(1, dtype=np.int64),
        response_token_ids=np.zeros(1, dtype=np.int64),
        sampler_logprobs=np.zeros(1, dtype=np.float32),
        advantage=0.0,
        scale=0.0,
    ),
)


def cut(rows: Sequence[Row], micro_batch_tokens: int) -> list[MicroBatch]:
    """Greedily, rows of similar length together, so that each micro-batch computes at most `micro_batch_tokens`
    tokens, padding included. A row longer than that gets a micro-batch of its own.
    """
    batches: list[MicroBatch] = []
    current: list[Row] = []
    prompt_width = response_width = 0
    for row in sorted(rows, key=lambda row: (row.tokens, len(row.prompt_token_ids))):
        prompt_width = max(prompt_width, len(row.prompt_token_ids))
        response_width = max(response_width, len(row.response_token_ids))
        if current and (len(current) + 1) * (prompt_width + response_width) > micro_batch_tokens:
            batches.append(tuple(current))
            current = []
            prompt_width, response_width = len(row.prompt_token_ids), len(row.response_token_ids)
        current.append(row)
    if current:
        batches.append(tuple(current))
    return batches


def shard(rows: Sequence[Row], ranks: int, micro_batch_tokens: int) -> list[list[MicroBatch]]:
    """One list of micro-batches per rank, all of the same length, at least 1. Every row is in exactly one."""
    # The longest first, each to the next rank in turn, balances tokens without looking at them again.
    ordered = sorted(rows, key=lambda row: row.tokens, reverse=True)
    shards = [cut(ordered[rank::ranks], micro_batch_tokens) for rank in range(ranks)]
    rounds = max(1, *(len(micro_batches) for micro_batches in shards))
    return [micro_batches + [EMPTY] * (rounds - len(micro_batches)) for micro_batches in shards]
