"""Find in a batch: rewards, advantages, tokens and log-probabilities that are not finite, or extreme. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cluster.core.types import Response, ScoredGroup, TrainingBatch, Verdict

LARGE_REWARD = 1e6
LARGE_ADVANTAGE = 1e3
"""Above what scaled rewards of 0 and 1 reach in groups of a thousand responses."""
SMALL_LOGPROB = -100.0
"""A token that was drawn has hardly a probability below e⁻¹⁰⁰."""
LARGE_GAP = 10.0
"""The difference between sampler and learner in the log-probability of a token."""


def findings(
    groups: Sequence[ScoredGroup],
    batches: Sequence[TrainingBatch],
    vocabulary: int,
    learner_logprobs: Mapping[int, np.ndarray],
) -> list[str]:
    """Return a line per response with anything that is not finite or extreme.

    Args:
        groups: The batch.
        batches: The mini-batches that were built of it.
        vocabulary: The number of token ids of the model.
        learner_logprobs: The learner's log-probabilities, by the identity of the response's array of tokens. Responses
            without a gradient may be missing.
    """
    advantages = {
        id(sample.response_token_ids): sample.advantage for batch in batches for sample in batch.samples
    }
    lines = []
    for group in groups:
        for index, (response, verdict) in enumerate(zip(group.responses, group.verdicts, strict=True)):
            key = id(response.token_ids)
            found = [
                *_tokens(group, response, vocabulary),
                *_reward(verdict, advantages.get(key)),
                *_logprobs("the sampler's", response.logprobs),
            ]
            if key in learner_logprobs:
                found += _logprobs("the learner's", learner_logprobs[key])
                found += _gap(response.logprobs, learner_logprobs[key])
            if found:
                lines.append(f"{group.prompt.id}, response {index}: {'; '.join(found)}")
    return lines


def unusable(groups: Sequence[ScoredGroup], vocabulary: int) -> str | None:
    """Return why no loss can be computed of these groups, or None."""
    for group in groups:
        for index, response in enumerate(group.responses):
            if found := next(_tokens(group, response, vocabulary), None):
                return f"{group.prompt.id}, response {index}: {found}"
    return None


def _tokens(group: ScoredGroup, response: Response, vocabulary: int) -> Iterator[str]:
    if not len(response.token_ids):
        yield "it has no tokens"
    context = (*group.prompt.token_ids, *response.prefix, *(response.replayed_from or ()))
    outside = [token for token in (*context, *response.token_ids.tolist()) if not 0 <= token < vocabulary]
    if outside:
        yield f"{len(outside)} tokens outside the vocabulary of {vocabulary}, such as {outside[0]}"


def _reward(verdict: Verdict, advantage: float | None) -> Iterator[str]:
    if not abs(verdict.reward) <= LARGE_REWARD:
        yield f"reward {verdict.reward:g}"
    if advantage is not None and not abs(advantage) <= LARGE_ADVANTAGE:
        yield f"advantage {advantage:g}"


def _logprobs(whose: str, logprobs: np.ndarray) -> Iterator[str]:
    missing = np.flatnonzero(~np.isfinite(logprobs))
    if len(missing):
        yield (
            f"{whose} log-probability of {len(missing)} of {len(logprobs)} tokens is NaN or infinite, first of token "
            f"{missing[0]}"
        )
    finite = logprobs[np.isfinite(logprobs)]
    if len(finite) and finite.min() < SMALL_LOGPROB:
        yield f"{whose} smallest log-probability is {finite.min():g}"
    if len(finite) and finite.max() > 1e-3:
        yield f"{whose} largest log-probability is {finite.max():g}, above 0"


def _gap(sampler: np.ndarray, learner: np.ndarray) -> Iterator[str]:
    both = np.isfinite(sampler) & np.isfinite(learner)
    gap = float(np.abs(sampler[both].astype(np.float64) - learner[both]).max()) if both.any() else math.nan
    if gap > LARGE_GAP:
        yield f"sampler and learner differ by up to {gap:g} in the log-probability of a token"
