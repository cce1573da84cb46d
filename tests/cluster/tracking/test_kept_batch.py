"""The batch of a failed update is read back as it was written, whatever is in it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.errors import RefusedError
from cluster.core.types import Group, Prompt, Response, Sampling, ScoredGroup, Verdict, VersionSpan
from cluster.tracking.kept_batch import read_batch, write_batch
from tests.builders import make_group

TOKENS = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.one_of(
    st.floats(allow_nan=False), st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1e308, 5e-324])
)
NARROW = st.one_of(
    st.floats(width=32, allow_nan=False), st.sampled_from([math.nan, math.inf, -math.inf, -0.0])
)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


@st.composite
def responses(draw: st.DrawFn) -> Response:
    length = draw(st.integers(0, 5))
    ids = draw(st.lists(TOKENS, min_size=length, max_size=length))
    logprobs = draw(st.lists(NARROW, min_size=length, max_size=length))
    spans = draw(st.lists(st.tuples(TOKENS, TOKENS, TOKENS), min_size=1, max_size=3))
    return Response(
        np.array(ids, dtype=np.int64),
        np.array(logprobs, dtype=np.float32),
        draw(TEXTS),
        draw(st.sampled_from(["stop", "length"])),
        tuple(VersionSpan(*span) for span in spans),
        draw(st.lists(TOKENS, max_size=3).map(tuple)),
        draw(st.none() | st.lists(TOKENS, max_size=3).map(tuple)),
    )


VERDICTS = st.builds(
    Verdict, st.sampled_from(["correct", "incorrect", "limit", "error"]), NUMBERS, st.none() | TEXTS, TEXTS
)
SAMPLINGS = st.builds(
    Sampling, TOKENS, st.floats(0, 2), TOKENS, st.none() | st.integers(0, 2**80), st.integers(0, 99)
)
PROMPTS = st.builds(
    Prompt,
    TEXTS,
    TEXTS,
    st.lists(TOKENS, min_size=1, max_size=4).map(tuple),
    st.none(),
    SAMPLINGS,
    st.lists(st.lists(TOKENS, max_size=3).map(tuple), max_size=3).map(tuple),
    st.booleans(),
)
GROUPS = st.builds(
    lambda prompt, pairs, worker: ScoredGroup(
        Group(prompt, tuple(response for response, _ in pairs), worker),
        tuple(verdict for _, verdict in pairs),
    ),
    PROMPTS,
    st.lists(st.tuples(responses(), VERDICTS), min_size=1, max_size=3),
    TEXTS,
)


def bits(groups: list[ScoredGroup]) -> Any:
    """Return everything in groups, with numbers as bytes, so that NaN and -0.0 compare as they are."""
    return [
        (
            group.prompt,
            group.group.worker,
            [
                (
                    replace(response, token_ids=None, logprobs=None),  # type: ignore[arg-type]
                    (response.token_ids.dtype, response.token_ids.tobytes()),
                    (response.logprobs.dtype, response.logprobs.tobytes()),
                    (replace(verdict, reward=0.0), np.float64(verdict.reward).tobytes()),
                )
                for response, verdict in zip(group.responses, group.verdicts, strict=True)
            ],
        )
        for group in groups
    ]


@given(groups=st.lists(GROUPS, min_size=1, max_size=3))
def test_what_is_written_is_read_back_bit_for_bit(
    groups: list[ScoredGroup], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("kept") / "step_000001-1.jsonl"
    write_batch(file, groups)
    assert bits(read_batch(file)) == bits(groups)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("-1.0", '"x"'),
        ("-1.0", "null"),
        ('"logprobs": [-1.0, ', '"logprobs": ['),
        ('"token_ids": [1, ', f'"token_ids": [{2**63}, '),
        ('"token_ids": [1, ', '"token_ids": [1.5, '),
        ('"outcome": "correct"', '"outcome": "good"'),
        ('"finish_reason": "stop"', '"finish_reason": "abort"'),
        ('"worker"', '"was"'),
    ],
)
def test_a_file_that_was_changed_is_refused_in_one_line(tmp_path: Path, old: str, new: str) -> None:
    file = tmp_path / "step_000001-1.jsonl"
    write_batch(file, [make_group()])
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(RefusedError, match="line 1: this is not a group of a kept batch") as refusal:
        read_batch(file)
    assert "\n" not in str(refusal.value)
