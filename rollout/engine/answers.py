"""The border to the engine: whatever it answers to a request becomes a valid response, or an error of that request.

The learner computes with what passes here, so every array has the length that its tokens say, every token is in the
vocabulary, and every token has a known weight version. A token without a usable log-probability keeps NaN, and is left
out of the loss. An answer with more than one of them, and more than 1 % of its tokens, is an error: a short response
does not become one by a single token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.core.logprob_gap import MAX_MISSING_LOGPROBS_FRACTION
from cluster.core.types import FinishReason, Response, VersionSpan
from rollout.engine.decoding import decoded

LOGPROB_RANGE = (-1000.0, 0.01)
"""The log-probabilities that a token which was drawn can have, with some rounding. Others count as missing."""
FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "length"}
"""The known ends of a response. An aborted one took too long, and was truncated."""


class EngineAnswerError(RuntimeError):
    """The engine's answer to a request is no valid response. The message is one line."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a valid answer to a request."""

    tokens: int
    """The largest number of tokens."""
    vocabulary: int
    """The number of token ids of the model."""
    version: int
    """The newest weight version that the engine has."""


def only_completion(output: Any) -> Any:
    """Return the completion of a finished request.

    Raises:
        EngineAnswerError: if there is not exactly one.
    """
    if output is None or not getattr(output, "finished", False):
        raise EngineAnswerError("the engine ended a request without a finished output")
    outputs = getattr(output, "outputs", None)
    if not isinstance(outputs, list | tuple) or len(outputs) != 1:
        count = len(outputs) if isinstance(outputs, list | tuple) else "no list of"
        raise EngineAnswerError(f"the engine returned {count} outputs of a request for one")
    return outputs[0]


def response_of(completion: Any, prefix: tuple[int, ...], limits: Limits, tokenizer: Any) -> Response:
    """Return a completion as a response that begins with `prefix`.

    Raises:
        EngineAnswerError: if it is not a valid response.
    """
    reason = getattr(completion, "finish_reason", None)
    if not isinstance(reason, str) or reason not in FINISH_REASONS:
        raise EngineAnswerError(f"the engine ended a response for an unknown reason: {reason!r:.60}")
    token_ids = _token_ids(getattr(completion, "token_ids", None), limits)
    logprobs = _logprobs(getattr(completion, "logprobs", None), token_ids)
    return Response(
        token_ids=np.array(token_ids, dtype=np.int64),
        logprobs=logprobs,
        text=decoded(tokenizer, [*prefix, *token_ids]),
        finish_reason=FINISH_REASONS[reason],
        version_spans=_spans(getattr(completion, "weight_versions", None), len(token_ids), limits.version),
        prefix=prefix,
    )


def _token_ids(found: Any, limits: Limits) -> list[int]:
    token_ids = _integers(found)
    if not token_ids:
        raise EngineAnswerError("the engine returned a response without tokens")
    if len(token_ids) > limits.tokens:
        raise EngineAnswerError(
            f"the engine returned {len(token_ids)} tokens, and was asked for {limits.tokens} at most"
        )
    outside = [token for token in token_ids if not 0 <= token < limits.vocabulary]
    if outside:
        raise EngineAnswerError(
            f"the engine returned token {outside[0]:.20g}, outside the vocabulary of {limits.vocabulary}"
        )
    return token_ids


def _logprobs(found: Any, token_ids: Sequence[int]) -> np.ndarray:
    """Return a log-probability per token, float32 [T], NaN where the engine returned nothing usable."""
    if _integers(getattr(found, "token_ids", None)) != token_ids:
        raise EngineAnswerError("the engine returned log-probabilities of other tokens than the sampled ones")
    try:
        numbers = np.array(found.logprobs, dtype=np.float64)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise EngineAnswerError("the engine returned log-probabilities that are no numbers") from error
    if numbers.shape != (len(token_ids),):
        raise EngineAnswerError(
            f"the engine returned log-probabilities of shape {numbers.shape} for {len(token_ids)} tokens"
        )
    lowest, highest = LOGPROB_RANGE
    numbers[~((numbers >= lowest) & (numbers <= highest))] = np.nan
    missing = int(np.isnan(numbers).sum())
    if missing > max(1, MAX_MISSING_LOGPROBS_FRACTION * len(numbers)):
        raise EngineAnswerError(
            f"the engine returned no usable log-probability for {missing} of {len(numbers)} tokens (the limit is "
            f"{MAX_MISSING_LOGPROBS_FRACTION:.0%}, and one token)"
        )
    return numbers.astype(np.float32)


def _spans(found: Any, tokens: int, newest: int) -> tuple[VersionSpan, ...]:
    """Return the spans of weight versions, which cover all tokens in order."""
    try:
        given = [VersionSpan(int(span.version), int(span.start), int(span.end)) for span in found]
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise EngineAnswerError("the engine returned a response without weight versions") from error
    spans = tuple(span for span in given if span.start != span.end)  # an update before the next token
    ends = [0, *(span.end for span in spans)]
    is_covered = [span.start for span in spans] == ends[:-1] and ends == sorted(ends) and ends[-1] == tokens
    if not is_covered:
        raise EngineAnswerError(
            f"the engine's weight versions do not cover the {tokens} tokens of a response"
        )
    versions = [span.version for span in spans]
    if versions != sorted(versions) or not 0 <= versions[0] <= versions[-1] <= newest:
        raise EngineAnswerError(
            f"the engine sampled a response with weight versions that it was not given, {versions[0]} to {versions[-1]}"
        )
    return spans


def _integers(found: Any) -> list[int] | None:
    """Return a sequence of integers as a list, or None if it is something else."""
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        return None
    numbers = list(found)
    return numbers if all(type(number) is int for number in numbers) else None
