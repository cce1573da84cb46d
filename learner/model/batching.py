"""Cut a training batch into micro-batches by cost, the same number for every rank. Pure functions of samples.

    samples ─▶ bundles (samples that share a prompt, computed as one sequence) ─▶ rounds (one micro-batch per rank)

Bundles are sorted by the number of tokens that they compute, and dealt to the ranks in turn. A round is a range of
sorted bundles, so that everything computed together has nearly the same width, on all ranks. The boundaries of the
rounds are chosen for the least cost, and so is the largest number of samples in a bundle. With 1 sample a prompt is
computed for every response; with more it is computed once per bundle, but then there are fewer bundles to distribute
over the ranks.

Every rank runs the same number of micro-batches, because backward is a collective under ZeRO 2 and 3. A rank with fewer
micro-batches runs an empty one: a single token with scale 0.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cluster.core.types import TrainingSample

Bundle = tuple[TrainingSample, ...]
"""Samples with the same prompt, which is computed once for all of them."""
MicroBatch = tuple[Bundle, ...]
"""Bundles that one forward pass of one rank computes."""

EMPTY: MicroBatch = (
    (
        TrainingSample(
            prompt_token_ids=np.zeros(1, dtype=np.int64),
            response_token_ids=np.zeros(1, dtype=np.int64),
            sampler_logprobs=np.zeros(1, dtype=np.float32),
            advantage=0.0,
            scale=0.0,
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class ForwardCost:
    """The cost of a micro-batch, in units of one token that passes through everything but attention."""

    per_pair: float = 0.0
    """The cost of one query attending to one key: a model's layers × attention width × 2 / parameters."""
    per_micro_batch: float = 256.0
    """The cost of a pass without any tokens. It is an estimate and deliberately not measured, because all runs must cut
    their batches in the same way."""
    packed: bool = False
    """True if the attention of responses computes no padding, as on GPUs (learner/model/attention_layouts.py)."""

    def __call__(
        self, sequences: np.ndarray, width: int, prompt: np.ndarray, own: np.ndarray, shared: np.ndarray
    ) -> np.ndarray:
        """Return the costs of R micro-batches with shared prefixes (learner/model/shared_prefix.py).

        Args:
            sequences: the number of sequences, [R].
            width: the number of columns of each sequence.
            prompt: the number of columns that are prompt in all sequences, [R].
            own: the largest number of pairs of responses with themselves in a sequence, [R].
            shared: True if several responses share any of the sequences, [R].
        """
        together = prompt**2 / 2 + (width - prompt) * prompt + own
        costs: np.ndarray = self.per_micro_batch + sequences * (
            width + self.per_pair * np.where(shared, together, width**2 / 2)
        )
        return costs


@dataclass(frozen=True, slots=True)
class Packing:
    """The rules for packing samples into micro-batches."""

    micro_batch_tokens: int
    """The largest number of tokens that one micro-batch computes, padding included. A longer sample has a micro-batch
    of its own."""
    prefix_sharing: Literal["auto", "on", "off"] = "auto"
    """Responses to the same prompt are computed together if it costs less (auto), whenever possible (on), or never
    (off)."""
    cost: ForwardCost = ForwardCost()


def computed_tokens(bundle: Bundle) -> int:
    """Return the number of columns of a bundle: its prompt, and each response without its last token, from which
    nothing is predicted."""
    return len(bundle[0].prompt_token_ids) + sum(len(sample.response_token_ids) - 1 for sample in bundle)


def own_pairs(bundle: Bundle, packed: bool) -> float:
    """Return the number of query-key pairs of the responses with themselves. If they are not packed, all are as long
    as the longest."""
    lengths = [len(sample.response_token_ids) - 1 for sample in bundle]
    squares = sum(length**2 for length in lengths) if packed else len(lengths) * max(lengths) ** 2
    return squares / 2


def shard(samples: Sequence[TrainingSample], ranks: int, packing: Packing) -> list[list[MicroBatch]]:
    """Return one list of micro-batches per rank, all with the same length of at least 1. Every sample is in exactly one
    micro-batch."""
    if not samples:
        return [[EMPTY]] * ranks
    groups = _by_prompt(samples)
    _, bundles, rounds = min(
        (
            _plan([bundle for group in groups for bundle in _split(group, limit, packing)], ranks, packing)
            for limit in _sample_limits(max(map(len, groups)), packing.prefix_sharing)
        ),
        key=lambda plan: plan[0],  # among equal costs the first, which shares most
    )
    return [
        [tuple(bundles[start + rank : end : ranks]) or EMPTY for start, end in itertools.pairwise(rounds)]
        for rank in range(ranks)
    ]


def _by_prompt(samples: Iterable[TrainingSample]) -> list[list[TrainingSample]]:
    """Collect the samples of each prompt, also across groups of the batch, with the longest responses first."""
    groups: dict[bytes, list[TrainingSample]] = defaultdict(list)
    for sample in samples:
        groups[sample.prompt_token_ids.tobytes()].append(sample)
    return [sorted(group, key=lambda sample: -len(sample.response_token_ids)) for group in groups.values()]


def _sample_limits(largest: int, prefix_sharing: str) -> list[int]:
    """Return the candidates for the largest number of samples in a bundle: a whole group, then halves down to 1."""
    limits = [largest]
    while limits[-1] > 1:
        limits.append((limits[-1] + 1) // 2)
    return {"auto": limits, "on": limits[:-1] or limits, "off": [1]}[prefix_sharing]


def _split(group: Sequence[TrainingSample], limit: int, packing: Packing) -> list[Bundle]:
    """Split `group` into bundles of nearly equal size with at most `limit` samples, each within the tokens of a
    micro-batch if possible."""
    for count in range(-(-len(group) // limit), len(group) + 1):
        # The samples are sorted by length, so dealing them back and forth keeps the bundles nearly equal.
        order = itertools.cycle([*range(count), *reversed(range(count))])
        parts: list[list[TrainingSample]] = [[] for _ in range(count)]
        for sample, part in zip(group, order, strict=False):
            parts[part].append(sample)
        bundles = [tuple(part) for part in parts]
        if max(map(computed_tokens, bundles)) <= packing.micro_batch_tokens:
            return bundles
    return [(sample,) for sample in group]


def _plan(bundles: list[Bundle], ranks: int, packing: Packing) -> tuple[float, list[Bundle], list[int]]:
    """Return the least cost, the sorted bundles, and the boundaries of the rounds in them that have this cost.

    best[j] = min over i of best[i] + cost of a round of blocks i … j − 1, where a block is one bundle for each rank.
    """
    bundles = sorted(bundles, key=lambda bundle: (-computed_tokens(bundle), -len(bundle[0].prompt_token_ids)))
    starts = range(0, len(bundles), ranks)
    width = [computed_tokens(bundles[start]) for start in starts]
    block = [bundles[start : start + ranks] for start in starts]
    prompt = np.array([min(len(bundle[0].prompt_token_ids) for bundle in each) for each in block])
    own = np.array([max(own_pairs(bundle, packing.cost.packed) for bundle in each) for each in block])
    shared = np.array([any(len(bundle) > 1 for bundle in each) for each in block])

    best = np.full(len(block) + 1, np.inf)
    best[0] = 0.0
    came_from = np.zeros(len(block) + 1, dtype=np.int64)
    for i in range(len(block)):
        end = min(len(block), i + max(1, packing.micro_batch_tokens // width[i]))
        cost = best[i] + packing.cost(
            np.arange(1, end - i + 1),
            width[i],
            np.minimum.accumulate(prompt[i:end]),
            np.maximum.accumulate(own[i:end]),
            np.logical_or.accumulate(shared[i:end]),
        )
        better = cost < best[i + 1 : end + 1]
        best[i + 1 : end + 1][better] = cost[better]
        came_from[i + 1 : end + 1][better] = i
    rounds = [len(block)]
    while rounds[0]:
        rounds.insert(0, int(came_from[rounds[0]]))
    return float(best[-1]), bundles, [min(start * ranks, len(bundles)) for start in rounds]
