"""Sampled responses as Markdown that a person enjoys reading: one file per step.

Right and wrong answers to the same prompt stand next to each other: comparing them is what teaches a reader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.core.types import Response, ScoredGroup, Verdict

Pair = tuple[Response, Verdict]

MARKS = {"correct": "✓ right", "incorrect": "✗ wrong", "error": "⚠ error", "timeout": "⏱ timeout"}
SHOWN_CHARACTERS = 6000


def write_transcripts(file: Path, step: int, groups: Sequence[ScoredGroup], responses: int) -> None:
    """Writes `responses` responses of the first groups, two or more per prompt, to `file`, and beside it as JSON lines.

    Raises:
        OSError: the file cannot be written.
    """
    file.write_text(render(step, groups, responses), encoding="utf-8")
    lines = [json.dumps(record(group, pairs)) for group, pairs in choose(groups, responses)]
    file.with_suffix(".jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def record(group: ScoredGroup, pairs: Sequence[Pair], category: str | None = None) -> dict[str, Any]:
    """A prompt and some of its responses for programs, fit for JSON."""
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
                "tokens": len(response.token_ids),
                "finish_reason": response.finish_reason,
                "min_version": response.min_version,
                "max_version": response.max_version,
            }
            for response, verdict in pairs
        ],
    }


def render(step: int, groups: Sequence[ScoredGroup], responses: int) -> str:
    """The Markdown text: per prompt what was asked, how the whole group did, and some of its responses."""
    chosen = choose(groups, responses)
    shown = sum(len(pairs) for _, pairs in chosen)
    parts = [f"# Step {step}\n", f"{shown} of {sum(len(group.responses) for group in groups)} responses.\n"]
    for group, pairs in chosen:
        right = sum(verdict.outcome == "correct" for verdict in group.verdicts)
        parts.append(f"## `{group.prompt.id}`: {right} of {len(group.verdicts)} right\n")
        parts.append(_fenced(group.prompt.text))
        for response, verdict in pairs:
            parts.append(_heading(response, verdict))
            parts.append(_fenced(response.text))
    return "\n".join(parts)


def choose(groups: Sequence[ScoredGroup], responses: int) -> list[tuple[ScoredGroup, list[Pair]]]:
    """Up to `responses` responses, about three per prompt, mixed groups first.

    From each group a right one when there is one, then others, unlike ones first.
    """
    by_mixture = sorted(groups, key=lambda group: len({v.outcome for v in group.verdicts}), reverse=True)
    chosen: list[tuple[ScoredGroup, list[Pair]]] = []
    left = responses
    for group in by_mixture:
        pairs = _unlike_first(group)[: min(3, left)]
        if pairs:
            chosen.append((group, pairs))
        left -= len(pairs)
    return chosen


def _unlike_first(group: ScoredGroup) -> list[Pair]:
    """One of each outcome (right, wrong, error, timeout), then the others, further right ones last."""
    pairs = list(zip(group.responses, group.verdicts, strict=True))
    of_outcome = {outcome: [pair for pair in pairs if pair[1].outcome == outcome] for outcome in MARKS}
    first = [pair for same in of_outcome.values() for pair in same[:1]]
    others = [pair for outcome, same in of_outcome.items() if outcome != "correct" for pair in same[1:]]
    return first + others + of_outcome["correct"][1:]


def _heading(response: Response, verdict: Verdict) -> str:
    tokens = f"{len(response.token_ids)} tokens" + (", cut off" if response.finish_reason == "length" else "")
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
    """One line of text that cannot break the page."""
    line = " ".join(text.split())
    if len(line) > 300:
        line = line[:300] + " …"
    if not code:
        return line
    fence = "`" * (max((len(run) for run in re.findall(r"`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if len(fence) > 1 else f"`{line}`"


def _fenced(text: str) -> str:
    """The text as it is, in a fence longer than any that a model wrote into it."""
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]}\n[… {len(text) - SHOWN_CHARACTERS} more characters]"
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text.rstrip()}\n{fence}\n"
