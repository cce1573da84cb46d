"""The files of an evaluation, and the page that shows the output of a model as plain text."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from cluster.core.types import ScoredGroup
from cluster.tracking.evaluation_files import write_evaluation
from cluster.tracking.pages import transcript_page
from tests.builders import make_group, make_prompt

HOSTILE = [
    "<script>alert(1)</script>",
    "</pre></article><script src=//evil></script>",
    '"><img src=x onerror=alert(1)>',
    "<!-- ",
    "</title><style>*{display:none}</style>",
    "{counts} {0} %s",
    "&lt;b&gt; &amp;",
    "\0 \x1b[31m \u202e txet \u200b \ud800",
    "]]> javascript:alert(1)",
]
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "h1", "p", "input", "label", "main", "section", "h2"),
    *("details", "summary", "pre", "article", "b", "span"),
}


class Page(HTMLParser):
    """Collects the text and the tags of a page, as a browser reads it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.shown: list[str] = []
        self.comments: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.shown.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def written_by(text: str) -> ScoredGroup:
    """Return a group of a model that writes `text` wherever it can."""
    group = make_group([1.0, 0.0], prompt=replace(make_prompt(id_=text), text=text))
    responses = tuple(replace(response, text=text) for response in group.responses)
    verdicts = tuple(replace(verdict, answer=text, reason=text) for verdict in group.verdicts)
    return replace(group, group=replace(group.group, responses=responses), verdicts=verdicts)


@given(st.lists(st.sampled_from([*HOSTILE, "a", "\n"]), max_size=5).map("".join))
@example("".join(HOSTILE))
def test_the_output_of_a_model_stays_text(text: str) -> None:
    page = transcript_page(text, [written_by(text)], lambda problem: text, 10)
    page.encode()  # no unpaired surrogate is left
    read, plain = Page(page), Page(transcript_page("a", [written_by("a")], lambda problem: "a", 10))
    assert read.tags == plain.tags
    assert read.attributes == plain.attributes
    assert set(read.tags) <= ALLOWED
    assert read.comments == []
    for hostile in HOSTILE:
        if hostile.isprintable() and hostile in text:
            assert any(hostile in shown for shown in read.shown), "and a reader sees all of it"


def test_the_page_forbids_scripts() -> None:
    page = transcript_page("", [], lambda problem: None, 10)
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'\"" in page
    assert "script" not in page


def test_invisible_and_direction_changing_characters_are_written_out() -> None:
    page = transcript_page("t", [written_by("a\u202eb\u200bc\x1bd\ud800e\tf")], lambda problem: None, 10)
    assert "a\\u202eb\\u200bc\\u001bd\\ud800e\tf" in page


def test_a_very_long_response_is_cut_with_a_note() -> None:
    assert len(transcript_page("t", [written_by("x" * 10**6)], lambda problem: None, 10)) < 300_000
    assert "more characters]" in transcript_page("t", [written_by("x" * 10**6)], lambda problem: None, 10)


def test_correct_and_incorrect_responses_and_the_category_are_shown() -> None:
    page = transcript_page("t", [written_by("what it said")], lambda problem: "C1 tilt", 10)
    for said in (
        "✓ correct",
        "✗ incorrect",
        "1 of 2 correct",
        "C1 tilt",
        "1 correct, 1 incorrect; 2 of 2 responses to 1 prompts",
    ):
        assert said in page


def test_every_response_is_in_the_jsonl_file(tmp_path: Path) -> None:
    groups = [written_by(text) for text in HOSTILE]
    report = {"task": "t", "split": "eval", "model": "m"}
    write_evaluation(tmp_path / "new" / "evaluation", report, groups, lambda problem: "kind")
    assert {file.name for file in (tmp_path / "new").iterdir()} == {
        *("evaluation.json", "evaluation.jsonl", "evaluation.html")
    }
    assert json.loads((tmp_path / "new" / "evaluation.json").read_text()) == report
    lines = (tmp_path / "new" / "evaluation.jsonl").read_bytes().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["prompt"] for row in rows] == HOSTILE
    assert rows[0] == {
        "prompt_id": HOSTILE[0],
        "category": "kind",
        "correct": 1,
        "valid": 2,
        "prompt": HOSTILE[0],
        "responses": [
            {
                "outcome": outcome,
                "reward": reward,
                "answer": HOSTILE[0],
                "reason": HOSTILE[0],
                "text": HOSTILE[0],
                "tokens": 3,
                "finish_reason": "stop",
                "min_version": 0,
                "max_version": 0,
            }
            for outcome, reward in (("correct", 1.0), ("incorrect", 0.0))
        ],
    }
