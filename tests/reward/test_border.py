"""The border: whatever a service, a verifier or its process says is a verdict that can be kept, or an error with a
reason. Ten thousand generated cases for each way in, and every verdict of them through every way out."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from cluster.core.text import utf8_text
from cluster.core.types import Outcome, Sampling, ScoredGroup, Verdict
from cluster.metrics.batch import batch_metrics
from cluster.tracking.evaluation_files import write_evaluation
from cluster.tracking.jsonl import MetricsFile
from cluster.tracking.transcripts import read_transcript, write_transcripts
from reward.sandbox.channel import (
    ProtocolError,
    ReplyParser,
    RunnerFailedError,
    frame,
    pack,
    read_start,
    read_verdicts,
    unpack,
)
from reward.tasks.http.client import read_reply
from reward.verdicts import MAX_ANSWER_CHARACTERS, MAX_REASON_CHARACTERS, error_verdict
from tests.builders import make_group, make_prompt
from tests.reward.foreign import TEXTS, Foreign

CASES = 10_000
ITEMS = 3
"""The number of items in the request that the replies of a process answer."""


def assert_keepable(verdict: Verdict) -> None:
    assert type(verdict.outcome) is str
    assert verdict.outcome in get_args(Outcome)
    assert type(verdict.reward) is float
    assert math.isfinite(verdict.reward)
    texts = [(verdict.reason, MAX_REASON_CHARACTERS), (verdict.answer or "", MAX_ANSWER_CHARACTERS)]
    for text, limit in texts:
        assert type(text) is str
        assert len(text) <= limit
        text.encode("utf-8")
        assert not any(ord(character) < 32 and character not in "\n\t" for character in text)


def read_by_http(body: bytes) -> Verdict:
    try:
        return read_reply(body, 1.0)
    except ValueError as error:
        return error_verdict(error)


def read_from_process(body: bytes) -> list[Verdict]:
    try:
        ((serial, reply),) = ReplyParser().feed(frame(7, body))
        assert serial == 7
        scored = read_verdicts(reply, ITEMS)
    except ProtocolError as error:
        return [error_verdict(error)]
    assert all(0 <= index < ITEMS for index, _ in scored.verdicts)
    assert isinstance(scored.done, bool)
    return [verdict for _, verdict in scored.verdicts]


def returned_by_verifier(value: Any) -> Verdict:
    """Return the verdict as it arrives in the parent: through both walls, that of the process and ours."""
    try:
        packed = pack(2, value)
    except Exception as error:  # the process makes an error verdict of any exception
        packed = pack(2, error_verdict(error))
    index, verdict = unpack(json.loads(json.dumps(packed)), ITEMS)
    assert index == 2
    return verdict


def generated_verdicts() -> Iterator[Verdict]:
    foreign = Foreign(0)
    yield from map(read_by_http, foreign.bodies(CASES))
    for body in foreign.frames(CASES):
        yield from read_from_process(body)
    yield from map(returned_by_verifier, foreign.verdicts(CASES))


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    return list(generated_verdicts())


def test_whatever_is_said_is_a_verdict_that_can_be_kept(verdicts: Sequence[Verdict]) -> None:
    for verdict in verdicts:
        assert_keepable(verdict)
    counts = Counter(verdict.outcome for verdict in verdicts)
    assert min(counts[outcome] for outcome in get_args(Outcome)) > 100, "the cases must reach every outcome"
    assert counts["error"] > CASES / 2
    assert len({verdict.reason for verdict in verdicts if verdict.outcome == "error"}) > 200


def groups_of(verdicts: Sequence[Verdict]) -> list[ScoredGroup]:
    sampling = Sampling(responses=8, temperature=1.0, max_response_tokens=8, seed=None)
    return [
        replace(
            make_group(
                [None] * len(verdicts[at : at + 8]),
                prompt=replace(make_prompt(f"train/0/{at}"), sampling=sampling),
            ),
            verdicts=tuple(verdicts[at : at + 8]),
        )
        for at in range(0, len(verdicts), 8)
    ]


def test_what_the_border_admits_can_be_written_everywhere(
    tmp_path: Path, verdicts: Sequence[Verdict]
) -> None:
    groups = groups_of(verdicts)
    write_transcripts(tmp_path / "step.md", 1, groups, len(verdicts))
    write_evaluation(
        tmp_path / "evaluation", {"task": "t", "split": "eval", "model": "m"}, groups, lambda problem: None
    )
    for file in tmp_path.iterdir():
        file.read_bytes().decode("utf-8")
    assert sum(1 for _ in read_transcript(tmp_path / "evaluation.jsonl")) == len(groups)
    with MetricsFile(tmp_path / "metrics.jsonl", tmp_path / "superseded.jsonl") as metrics:
        for step in range(0, len(groups) - 8, 8):
            measured = batch_metrics(groups[step : step + 8], 0)
            valid = sum(group.valid for group in groups[step : step + 8])
            assert math.isfinite(measured["reward/mean"]) or not valid
            metrics.log(step, measured)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))


def test_texts_that_pass_by_the_border_can_be_written_too(tmp_path: Path) -> None:
    """The prompts of a data set, for example."""
    groups = [
        replace(group, group=replace(group.group, prompt=replace(make_prompt(), text=text)))
        for group, text in zip(groups_of([Verdict("correct", 1.0, t, t) for t in TEXTS]), TEXTS, strict=False)
    ]
    write_transcripts(tmp_path / "step.md", 1, groups, 100)
    write_evaluation(
        tmp_path / "all", {"task": "t", "split": "eval", "model": "m"}, groups, lambda problem: "\ud800"
    )
    for file in tmp_path.iterdir():
        assert "\0" not in file.read_bytes().decode("utf-8")
    assert utf8_text("a\ud800") == "a\\ud800"


def test_pieces_of_replies_of_any_size_give_the_same_replies() -> None:
    bodies = [b'{"verdicts": [], "done": true, "children": false}', b"{}", b'{"ready": true}'] * 20
    stream = b"".join(frame(number, body) for number, body in enumerate(bodies))
    for size in (1, 7, 4096):
        parser, replies = ReplyParser(), list[tuple[int, Any]]()
        for at in range(0, len(stream), size):
            replies += parser.feed(stream[at : at + size])
        assert replies == [(number, json.loads(body)) for number, body in enumerate(bodies)]


@pytest.mark.parametrize(
    "reply", [{}, {"ready": 1}, {"ready": True, "more": 1}, {"failed": None}, {"failed": "x", "ready": True}]
)
def test_another_first_reply_is_refused(reply: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        read_start(reply)


def test_the_reason_of_a_failed_start_is_a_text_that_can_be_kept() -> None:
    with pytest.raises(RunnerFailedError) as failed:
        read_start({"failed": "\ud800\0" * 5000})
    assert str(failed.value).startswith(r"\ud800\u0000")
    assert len(str(failed.value)) == MAX_REASON_CHARACTERS
