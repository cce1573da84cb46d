"""Find the part of a document that a benchmark writes, between two lines with its marks."""

from __future__ import annotations

import re
from pathlib import Path

Marks = tuple[str, str]
"""The line before the part, and the beginning of the line after it."""


def split(document: str, marks: Marks) -> tuple[str, str, str]:
    """Split a document into the text before the part, the part, and the text after it. The marks are text."""
    first, last = map(re.escape, marks)
    found = re.fullmatch(f"(.*{first})(.*)({last}.*)", document, re.DOTALL)
    if found is None:
        raise ValueError(f"the document has no lines {marks[0]!r} and {marks[1]!r}")
    before, part, behind = found.groups()
    return before, part, behind


def part_of(file: Path, marks: Marks) -> str:
    """Return the part between the marks."""
    _, part, _ = split(file.read_text(encoding="utf-8"), marks)
    return part


def write_part(file: Path, marks: Marks, part: str) -> None:
    """Replace the part between the marks."""
    before, _, behind = split(file.read_text(encoding="utf-8"), marks)
    file.write_text("".join([before, part, behind]), encoding="utf-8")
