"""Cut a weighed batch into micro-batches, by cost, the same number for every rank. Pure: samples in, samples out.

    samples ─▶ bundles (samples that share a prompt, computed as one sequence) ─▶ rounds (one micro-batch per rank)

Bundles are sorted by the tokens that they compute, and dealt to the ranks in turn. A round is a run of them, so what
is computed together is of nearly one width, on all ranks alike. Where the rounds begin is chosen for the least cost,
and so is how many samples a bundle may have: with 1 a prompt is computed for every response, with more once per bundle;
but then there is less to share out among the ranks, and with a mask responses look past each other (`ForwardCost`).

Every rank runs as many micro-batches as the others, because backward is a collective under ZeRO 2 and 3. Where one
has fewer, it runs an empty one: a single token whose scale is 0.
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
"""Samples with one prompt, which is computed once for all of them."""
MicroBatch = tuple[Bundle, ...]

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
    """What a micro-batch costs, in units of one token that goes through everything but attention."""

    per_pair: float = 0.0
    """Of one query looking at one key; a model's layers × attention width × 2 / parameters."""
    per_micro_batch: float = 256.0
    """However small it is: what a pass costs without any tokens. A guess, and on purpose not measured: the cut must be
    the same in every run."""
    masked: bool = False
    """Whether pairs of different responses are computed too, as they are where attention takes a mask (on GPUs)."""

    def __call__(
        self, sequences: np.ndarray, width: int, prompt: np.ndarray, own: np.ndarray, shared: np.ndarray
    ) -> np.ndarray:
        """Costs of micro-batches, all [R]: `sequences` of them, `width` columns each, `prompt` columns of which are
        prompt in all, `own` pairs of responses with themselves at most, and whether any sequence is `shared` by
        responses. See learner/model/shared_prefix.py."""
        among_responses = (width - prompt) ** 2 if self.masked else own
        together = prompt**2 / 2 + (width - prompt) * prompt + among_responses
        return self.per_micro_batch + sequences * (
            width + self.per_pair * np.where(shared, together, width**2 / 2)
        )


@dataclass(frozen=True, slots=True)
class Packing:
    """How samples may be packed into micro-batches."""

    micro_batch_tokens: int
    """Tokens that one micro-batch computes at most, padding included. A sample longer than that gets one of its own."""
    prefix_sharing: Literal["auto", "on", "off"] = "auto"
    """Whether responses to one prompt are computed together: where it costs less, as far as possible, never."""
    cost: ForwardCost = ForwardCost()


def computed_tokens(bundle: Bundle) -> int:
    """Columns that a bundle fills: its prompt, and of each response all but the last token, from which nothing is
    predicted."""
    return len(bundle[0].prompt_token_ids) + sum(len(sample.response_token_ids) - 1 for sample in bundle)


def own_pairs(bundle: Bundle) -> float:
    """Query-key pairs of its responses with themselves, all as long as the longest."""
    return len(bundle) * (max(len(sample.response_token_ids) for sample in bundle) - 1) ** 2 / 2


def shard(samples: Sequence[TrainingSample], ranks: int, packing: Packing) -> list[list[MicroBatch]]:
    """One list of micro-batches per rank, all of the same length, at least 1. Every sample is in exactly one."""
    if not samples:
        return [[EMPTY]] * ranks
    groups = _by_prompt(samples)
    _, bundles, rounds = min(
        (
            _plan([bundle for group in groups for bundle in _split(group, limit, packing)], ranks, packing)
            for limit in _sample_limits(max(map(len, groups)), packing.prefix_sharing)
        ),
        key=lambda plan: plan[0],  # of equals the first, which shares most
    )
    return [
        [tuple(bundles[start + rank : end : ranks]) or EMPTY for start, end in itertools.pairwise(rounds)]
        for rank in range(ranks)
    ]


def _by_prompt(samples: Iterable[TrainingSample]) -> list[list[TrainingSample]]:
    """Samples with the same prompt, whichever group they were sampled in; the longest responses first."""
    groups: dict[bytes, list[TrainingSample]] = defaultdict(list)
    for sample in samples:
        groups[sample.prompt_token_ids.tobytes()].append(sample)
    return [sorted(group, key=lambda sample: -len(sample.response_token_ids)) for group in groups.values()]


def _sample_limits(largest: int, prefix_sharing: str) -> list[int]:
    """How many samples bundles might be allowed to have: all, and by halves down to 1."""
    limits = [largest]
    while limits[-1] > 1:
        limits.append((limits[-1] + 1) // 2)
    return {"auto": limits, "on": limits[:-1] or limits, "off": [1]}[prefix_sharing]


def _split(group: Sequence[TrainingSample], limit: int, packing: Packing) -> list[Bundle]:
    """Split `group` into bundles of nearly equal size with at most `limit` samples, each within the tokens of a
    micro-batch if possible."""
    for count in range(-(-len(group) // limit), len(group) + 1):
        # There and back, as children are chosen into teams: the samples are sorted.
        order = itertools.cycle([*range(count), *reversed(range(count))])
        teams: list[list[TrainingSample]] = [[] for _ in range(count)]
        for sample, team in zip(group, order, strict=False):
            teams[team].append(sample)
        bundles = [tuple(team) for team in teams]
        if max(map(computed_tokens, bundles)) <= packing.micro_batch_tokens:
            return bundles
    return [(sample,) for sample in group]


def _plan(bundles: list[Bundle], ranks: int, packing: Packing) -> tuple[float, list[Bundle], list[int]]:
    """The least cost, the bundles sorted, and where in them the rounds begin that cost it, with the end of the last.

    best[j] = min over i of best[i] + cost of a round of blocks i … j − 1, where a block is one bundle for each rank.
    """
    bundles = sorted(bundles, key=lambda bundle: (-computed_tokens(bundle), -len(bundle[0].prompt_token_ids)))
    starts = range(0, len(bundles), ranks)
    width = [computed_tokens(bundles[start]) for start in starts]
    block = [bundles[start : start + ranks] for start in starts]
    prompt = np.array([min(len(bundle[0].prompt_token_ids) for bundle in each) for each in block])
    own = np.array([max(map(own_pairs, each)) for each in block])
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
