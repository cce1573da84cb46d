"""The batch of an update that was not finite: written as JSON Lines, one group per line, and read back bit for bit.

A line has what a transcript has, for people, and everything else that the learner got. JSON has no NaN and no infinity,
so these are the strings "NaN", "Infinity" and "-Infinity". Problems are left out: only a verifier needs them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator

from cluster.core.errors import RefusedError
from cluster.core.files import write_atomically
from cluster.core.reading import FIX, RECORD_MIB, object_of, read_text, shown_path
from cluster.core.text import json_text
from cluster.core.types import (
    FinishReason,
    Group,
    Outcome,
    Prompt,
    Response,
    Sampling,
    ScoredGroup,
    Verdict,
    VersionSpan,
)
from cluster.tracking.transcripts import record

_Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)]
_Tokens = tuple[_Int64, ...]


def write_batch(file: Path, groups: Sequence[ScoredGroup]) -> None:
    """Write a whole batch to `file`.

    Raises:
        OSError: if the file cannot be written.
    """
    lines = [json_text(_line(group)) for group in groups]
    write_atomically(file, "".join(f"{line}\n" for line in lines), durable=True)


def read_batch(file: Path) -> list[ScoredGroup]:
    """Return the groups that `write_batch` wrote, with None as their problems.

    Raises:
        FileNotFoundError: if there is no such file.
        RefusedError: if it is not such a file.
    """
    groups = []
    for number, line in enumerate(read_text(file, RECORD_MIB).split("\n"), start=1):
        if line:
            where = f"{shown_path(file)}, line {number}"
            try:
                groups.append(_Group.model_validate(object_of(line, where)).scored())
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                place = ".".join(map(str, first["loc"])) or "the group"
                raise RefusedError(
                    f"{where}: this is not a group of a kept batch ({place}: {first['msg']}); {FIX}"
                ) from error
    if not groups:
        raise RefusedError(f"{shown_path(file)}: the file has no groups; {FIX}")
    return groups


def _line(group: ScoredGroup) -> dict[str, Any]:
    """Return a group ready for JSON."""
    prompt = group.prompt
    found = record(group, list(zip(group.responses, group.verdicts, strict=True)))
    found |= {
        "worker": group.group.worker,
        "prompt_token_ids": prompt.token_ids,
        "sampling": asdict(prompt.sampling),
        "prefixes": prompt.prefixes,
        "has_examples": prompt.has_examples,
    }
    for line, response in zip(found["responses"], group.responses, strict=True):
        line |= {
            "reward": _exact(line["reward"]),
            "prefix_token_ids": response.prefix,
            "replayed_from": response.replayed_from,
            "version_spans": response.version_spans,
            "token_ids": response.token_ids.tolist(),
            "logprobs": [_exact(value) for value in response.logprobs.tolist()],
        }
    return found


def _exact(number: float) -> float | str:
    """Return a number as JSON can express it. Python writes a finite one with all digits that it needs."""
    if math.isnan(number):
        return "NaN"
    return number if math.isfinite(number) else "Infinity" if number > 0 else "-Infinity"


# --- The format. Fields that only people need are ignored.


class _Sampling(BaseModel):
    responses: _Int64
    temperature: float
    max_response_tokens: _Int64
    seed: int | None
    first: _Int64


class _Response(BaseModel):
    outcome: Outcome
    reward: float
    answer: str | None
    reason: str
    text: str
    finish_reason: FinishReason
    prefix_token_ids: _Tokens
    replayed_from: _Tokens | None
    version_spans: Annotated[tuple[tuple[_Int64, _Int64, _Int64], ...], Field(min_length=1)]
    token_ids: list[_Int64]
    logprobs: list[float]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if len(self.logprobs) != len(self.token_ids):
            raise ValueError(f"{len(self.logprobs)} log-probabilities of {len(self.token_ids)} tokens")
        return self

    def response(self) -> Response:
        with np.errstate(over="ignore"):  # a number that float32 lacks was not written here
            logprobs = np.array(self.logprobs, dtype=np.float32)
        return Response(
            np.array(self.token_ids, dtype=np.int64),
            logprobs,
            self.text,
            self.finish_reason,
            tuple(VersionSpan(*span) for span in self.version_spans),
            self.prefix_token_ids,
            self.replayed_from,
        )


class _Group(BaseModel):
    prompt_id: str
    prompt: str
    prompt_token_ids: Annotated[_Tokens, Field(min_length=1)]
    sampling: _Sampling
    prefixes: tuple[_Tokens, ...]
    has_examples: bool
    worker: str
    responses: Annotated[list[_Response], Field(min_length=1)]

    def scored(self) -> ScoredGroup:
        sampling = Sampling(**self.sampling.model_dump())
        prompt = Prompt(
            self.prompt_id,
            self.prompt,
            self.prompt_token_ids,
            None,
            sampling,
            self.prefixes,
            self.has_examples,
        )
        verdicts = tuple(
            Verdict(each.outcome, each.reward, each.answer, each.reason) for each in self.responses
        )
        return ScoredGroup(
            Group(prompt, tuple(each.response() for each in self.responses), self.worker), verdicts
        )
