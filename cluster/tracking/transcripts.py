"""Sampled responses and their verdicts, for people and for programs: a Markdown and a JSON Lines file per step.

Correct and incorrect responses to the same prompt are shown next to each other, so that a reader can compare them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.core.errors import RefusedError
from cluster.core.files import write_atomically
from cluster.core.reading import FIX, RECORD_MIB, object_of, read_text, shown_path
from cluster.core.renamed import current_transcript
from cluster.core.text import json_text, visible_text
from cluster.core.types import Response, ScoredGroup, Verdict

Pair = tuple[Response, Verdict]

MARKS = {"correct": "✓ correct", "incorrect": "✗ incorrect", "error": "⚠ error", "limit": "⏱ limit"}
SHOWN_CHARACTERS = 6000
"""The number of characters of a text that are shown; longer texts are cut."""


def write_transcripts(file: Path, step: int, groups: Sequence[ScoredGroup], responses: int) -> None:
    """Write up to `responses` responses, about three per prompt, as Markdown to `file` and as JSON Lines beside it.

    Raises:
        OSError: if a file cannot be written.
    """
    write_atomically(file, render(step, groups, responses))
    lines = [json_text(record(group, pairs)) for group, pairs in choose(groups, responses)]
    write_atomically(file.with_suffix(".jsonl"), "".join(f"{line}\n" for line in lines))


def read_transcript(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the groups of a `.jsonl` file of `write_transcripts`. Names that an earlier version wrote are translated.

    Raises:
        FileNotFoundError: if there is no such file.
        RefusedError: if the file is broken.
    """
    for number, line in enumerate(read_text(file, RECORD_MIB).split("\n"), start=1):
        if line:
            where = f"{shown_path(file)}, line {number}"
            try:
                yield _checked_group(current_transcript(object_of(line, where)))
            except (KeyError, TypeError, AttributeError) as error:
                raise RefusedError(f"{where}: these are not the responses to a prompt; {FIX}") from error


def _checked_group(group: dict[str, Any]) -> dict[str, Any]:
    """Return a group whose entries have the types that pages need.

    Raises:
        TypeError: if they do not.
    """
    texts = [group["prompt"], *(response["outcome"] for response in group["responses"])]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("texts")
    return group


def record(group: ScoredGroup, pairs: Sequence[Pair], category: str | None = None) -> dict[str, Any]:
    """Return a prompt and some of its responses, ready for JSON."""
    return {
        "prompt_id": group.prompt.id,
        "category": category,
        "prompt": group.prompt.text,
        "correct": group.correct,
        "valid": group.valid,
        "responses": [
            {
                "outcome": verdict.outcome,
                "reward": verdict.reward,
                "answer": verdict.answer,
                "reason": verdict.reason,
                "text": response.text,
                **({"prefix_tokens": len(response.prefix)} if response.prefix else {}),
                "tokens": len(response.token_ids),
                "finish_reason": response.finish_reason,
                "min_version": response.min_version,
                "max_version": response.max_version,
            }
            for response, verdict in pairs
        ],
    }


def render(step: int, groups: Sequence[ScoredGroup], responses: int) -> str:
    """Return the Markdown text: for each prompt its text, the results of the whole group, and some responses."""
    chosen = choose(groups, responses)
    shown = sum(len(pairs) for _, pairs in chosen)
    parts = [f"# Step {step}\n", f"{shown} of {sum(len(group.responses) for group in groups)} responses.\n"]
    for group, pairs in chosen:
        parts.append(f"## `{group.prompt.id}`: {group.correct} of {len(group.verdicts)} correct\n")
        parts.append(_fenced(group.prompt.text))
        for response, verdict in pairs:
            parts.append(_heading(response, verdict))
            parts.append(_fenced(response.text))
    return "\n".join(parts)


def choose(groups: Sequence[ScoredGroup], responses: int) -> list[tuple[ScoredGroup, list[Pair]]]:
    """Choose up to `responses` responses, about three per prompt. Groups with several outcomes come first.

    From each group a correct response comes first, if there is one, then one response of each other outcome.
    """
    by_outcomes = sorted(groups, key=lambda group: len({v.outcome for v in group.verdicts}), reverse=True)
    chosen: list[tuple[ScoredGroup, list[Pair]]] = []
    remaining = responses
    for group in by_outcomes:
        pairs = _distinct_outcomes_first(group)[: min(3, remaining)]
        if pairs:
            chosen.append((group, pairs))
        remaining -= len(pairs)
    return chosen


def _distinct_outcomes_first(group: ScoredGroup) -> list[Pair]:
    """Return one response of each outcome (in the order of `MARKS`), then the rest, with further correct ones last."""
    pairs = list(zip(group.responses, group.verdicts, strict=True))
    of_outcome = {outcome: [pair for pair in pairs if pair[1].outcome == outcome] for outcome in MARKS}
    first = [pair for same in of_outcome.values() for pair in same[:1]]
    others = [pair for outcome, same in of_outcome.items() if outcome != "correct" for pair in same[1:]]
    return first + others + of_outcome["correct"][1:]


def _heading(response: Response, verdict: Verdict) -> str:
    tokens = f"{len(response.token_ids)} tokens" + (
        ", truncated" if response.finish_reason == "length" else ""
    )
    if response.prefix:
        tokens += f" after a prefix of {len(response.prefix)}"
    weights = f"weights v{response.min_version}"
    if response.max_version != response.min_version:
        weights += f" to v{response.max_version}"
    text = f"### {MARKS[verdict.outcome]} · reward {verdict.reward:g} · {tokens} · {weights}\n"
    if verdict.answer is not None:
        text += f"\nAnswer: {_inline(verdict.answer)}  "  # two spaces: a line break in Markdown
    if verdict.reason:
        text += f"\nVerifier: {_inline(verdict.reason, code=False)}\n"
    return text


def _inline(text: str, code: bool = True) -> str:
    """Return `text` as one line that cannot break the Markdown around it."""
    line = " ".join(visible_text(text).split())
    if len(line) > 300:
        line = line[:300] + " …"
    if not code:
        return line
    fence = "`" * (max((len(run) for run in re.findall(r"`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if len(fence) > 1 else f"`{line}`"


def _fenced(text: str) -> str:
    """Return `text` in a code fence that is longer than any fence in the text."""
    text = visible_text(text, SHOWN_CHARACTERS)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text.rstrip()}\n{fence}\n"
