"""Transcripts show contrasting responses, never more than requested, and keep any text of a model intact."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.types import Group, Outcome, Prompt, Response, Sampling, ScoredGroup, Verdict, VersionSpan
from cluster.tracking.transcripts import choose, record, render, write_transcripts

OUTCOMES = st.lists(st.sampled_from(["correct", "incorrect", "error", "limit"]), min_size=1, max_size=8)


HOSTILE = st.lists(st.sampled_from(["`", "```", "````", "\n", "\n```\n", "# ", " ", "<!--", "é"])).map(
    "".join
)


def group(outcomes: list[Outcome], row: int = 0, text: str = "4 * 5 = 20", reason: str = "") -> ScoredGroup:
    prompt = Prompt(
        f"train/0/{row}", "Make 20 from 4 and 5.", (1, 2), None, Sampling(len(outcomes), 1.0, 8, None)
    )
    tokens = np.arange(3)
    responses = tuple(
        Response(
            tokens,
            np.zeros(3, np.float32),
            f"{text} #{i}",
            "length" if i == 1 else "stop",
            (VersionSpan(6, 0, 1), VersionSpan(6 + i, 1, 3)),
        )
        for i in range(len(outcomes))
    )
    verdicts = tuple(Verdict(outcome, float(outcome == "correct"), "4*5", reason) for outcome in outcomes)
    return ScoredGroup(Group(prompt, responses, "rollout-0"), verdicts)


@given(batch=st.lists(OUTCOMES, max_size=5), responses=st.integers(0, 12))
def test_the_requested_number_without_duplicates_and_correct_next_to_incorrect(
    batch: list[list[Outcome]], responses: int
) -> None:
    groups = [group(outcomes, row) for row, outcomes in enumerate(batch)]
    chosen = choose(groups, responses)
    shown = [response for _, pairs in chosen for response, _ in pairs]
    assert len(shown) == min(responses, sum(min(3, len(outcomes)) for outcomes in batch))
    assert len({id(response) for response in shown}) == len(shown)
    for one, pairs in chosen:
        present = {verdict.outcome for verdict in one.verdicts}
        if len(pairs) >= 2:
            assert len({verdict.outcome for _, verdict in pairs}) >= min(2, len(present))
        for response, verdict in pairs:  # each response keeps its own verdict
            index = [id(other) for other in one.responses].index(id(response))
            assert one.verdicts[index] is verdict


def test_groups_with_several_outcomes_come_first() -> None:
    groups = [group(["incorrect"] * 4, 0), group(["incorrect", "correct", "incorrect", "incorrect"], 1)]
    ((first, pairs),) = choose(groups, 3)
    assert first.prompt.id == "train/0/1"
    assert [verdict.outcome for _, verdict in pairs] == ["correct", "incorrect", "incorrect"]


def test_a_transcript_has_everything(tmp_path: Path) -> None:
    file = tmp_path / "step_000050.md"
    write_transcripts(file, 50, [group(["incorrect", "correct"], reason="uses 5 twice")], 4)
    text = file.read_text(encoding="utf-8")
    for said in (
        "# Step 50", "2 of 2 responses", "`train/0/0`: 1 of 2 correct", "Make 20 from 4 and 5.", "✓ correct · reward 1",
        "✗ incorrect · reward 0", "3 tokens, truncated", "weights v6 to v7", "uses 5 twice", "`4*5`",
    ):  # fmt: skip
        assert said in text


@given(text=HOSTILE, reason=HOSTILE)
def test_no_text_of_a_model_breaks_out_of_its_fence(text: str, reason: str) -> None:
    page = render(1, [group(["correct", "incorrect"], text=text, reason=reason)], 2)
    fence = None
    headings = 0
    for line in page.split("\n"):
        if fence is None:
            headings += line.startswith("#")
            if opening := re.match(r"(`{3,})text$", line):
                fence = opening.group(1)
        elif re.match(rf" {{0,3}}{fence}`*[ \t]*$", line):  # a closing fence in CommonMark
            fence = None
    assert fence is None
    assert headings == 4  # step, prompt, two responses


def test_a_very_long_response_is_cut_with_a_note() -> None:
    page = render(1, [group(["correct"], text="x" * 100_000)], 1)
    assert len(page) < 10_000
    assert "more characters" in page


def test_a_prefix_is_told_apart_from_the_sampled_tokens() -> None:
    plain = group(["correct"])
    (response,) = plain.responses
    given_ = replace(plain, group=replace(plain.group, responses=(replace(response, prefix=(7, 8)),)))
    assert "3 tokens after a prefix of 2" in render(1, [given_], 4)
    assert "prefix" not in render(1, [plain], 4)
    for one, expected in ((given_, 2), (plain, None)):
        (line,) = record(one, list(zip(one.responses, one.verdicts, strict=True)))["responses"]
        assert line.get("prefix_tokens") == expected
        assert line["tokens"] == 3
