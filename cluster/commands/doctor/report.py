"""Findings for a person, and for a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from cluster.commands.doctor.assessment import Finding, Level

_MARKS: dict[Level, tuple[str, str]] = {
    "ok": ("✓ ok", "green"),
    "warn": ("! warn", "yellow"),
    "fail": ("✗ fail", "red"),
}


def table(findings: Sequence[tuple[str, Finding]]) -> Table:
    """One row each, in the order in which they were found."""
    drawn = Table(box=None, pad_edge=False, header_style="cyan", padding=(0, 2, 0, 0))
    for heading in ("", "where", "what", "found"):
        drawn.add_column(heading, overflow="fold")
    for where, finding in findings:
        mark, style = _MARKS[finding.level]
        said = Text(finding.said)
        if finding.fix:
            said.append(f"\n→ {finding.fix}", style="bold")
        drawn.add_row(Text(mark, style), Text(where), Text(finding.what), said)
    return drawn


def as_json(findings: Sequence[tuple[str, Finding]]) -> list[dict[str, Any]]:
    return [{"where": where, **asdict(finding)} for where, finding in findings]


def verdict(findings: Sequence[tuple[str, Finding]]) -> str:
    """In one line."""
    counts = {level: sum(finding.level == level for _, finding in findings) for level in _MARKS}
    if counts["fail"]:
        return f"{counts['fail']} thing(s) must be mended first, {counts['warn']} to be aware of"
    return "ready" + (f", {counts['warn']} thing(s) to be aware of" if counts["warn"] else "")
