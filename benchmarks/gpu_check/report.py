"""The report of a check, as Markdown and as JSON. Standard library only."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.findings import Outcome, Settings
from benchmarks.report import commit

FAULTY = ("failed", "timed out")


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Return 1 if a part failed or timed out, or if no part could run, else 0."""
    verdicts = {outcome.verdict for outcome in outcomes}
    return 1 if verdicts & {*FAULTY} or "passed" not in verdicts else 0


def write_reports(outcomes: Sequence[Outcome], settings: Settings, output: Path) -> tuple[Path, Path]:
    """Write `report.md` and `report.json` to the directory `output`. Return their paths."""
    facts = {
        "command": shlex.join(["python", "-m", "benchmarks.gpu_check", *sys.argv[1:]]),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": settings.device,
        "smoke": settings.smoke,
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "exit_code": exit_code(outcomes),
    }
    as_json, as_markdown = output / "report.json", output / "report.md"
    report = {**facts, "parts": [asdict(outcome) for outcome in outcomes]}
    as_json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    as_markdown.write_text("\n".join(_markdown(facts, outcomes)) + "\n", encoding="utf-8")
    return as_markdown, as_json


def _markdown(facts: Mapping[str, Any], outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "# GPU check"
    yield ""
    for name, value in facts.items():
        yield f"- {name.replace('_', ' ')}: {_cell(value)}"
    if facts["smoke"]:
        yield "- tiny sizes: the figures show that the parts run, and nothing about memory or speed"
    yield ""
    yield from _table(
        [
            {
                "part": outcome.name,
                "verdict": outcome.verdict,
                "seconds": outcome.seconds,
                "reason": outcome.reason,
            }
            for outcome in outcomes
        ]
    )
    faulty = [outcome for outcome in outcomes if outcome.verdict in FAULTY]
    if faulty:
        yield from ("", "## What to do", "")
        for outcome in faulty:
            for remedy in outcome.remedies:
                yield f"- {outcome.name}: {remedy}"
    for outcome in outcomes:
        yield from _part(outcome)


def _part(outcome: Outcome) -> Iterator[str]:
    yield from ("", f"## {outcome.name}: {outcome.title}", "")
    reason = f": {outcome.reason}" if outcome.reason else ""
    yield f"**{outcome.verdict}**{reason}. {outcome.seconds} s, limit {outcome.limit_s:g} s, log `{outcome.log}`."
    if outcome.checks:
        yield ""
        for check in outcome.checks:
            yield f"- {'ok' if check.holds else '**failed**'}: {check.name} ({check.found})"
    if outcome.notes:
        yield ""
        yield from (f"- note: {note}" for note in outcome.notes)
    scalars = {title: value for title, value in outcome.figures.items() if not isinstance(value, list)}
    if scalars:
        yield ""
        yield from (f"- {title}: {_cell(value)}" for title, value in scalars.items())
    for title, rows in outcome.figures.items():
        if isinstance(rows, list) and rows:
            yield from ("", f"{title}:", "")
            yield from _table(rows)
    if outcome.log_tail:
        yield from ("", "The end of its log:", "", "```", *outcome.log_tail, "```")


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(_cell(row.get(column, '')) for column in columns)} |"


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
