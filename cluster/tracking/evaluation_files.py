"""The files of an evaluation: its report, all responses with their verdicts, and a page to read.

STEM.json    the report, as `launch.py eval --json` prints it
STEM.jsonl   one prompt per line, with all its responses and their verdicts
STEM.html    correct and incorrect responses side by side
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.core.files import write_atomically
from cluster.core.text import json_text
from cluster.core.types import CategoryOf, ScoredGroup
from cluster.tracking.pages import transcript_page
from cluster.tracking.transcripts import record

SHOWN_RESPONSES = 400
"""The number of responses on the page, which a browser can still show. The `.jsonl` file has all of them."""


def write_evaluation(
    stem: Path, report: Mapping[str, Any], groups: Sequence[ScoredGroup], category_of: CategoryOf
) -> None:
    """Write the three files, each atomically.

    Raises:
        OSError: if a file cannot be written.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(stem.with_suffix(".json"), json_text(report, indent=2) + "\n")
    write_atomically(stem.with_suffix(".jsonl"), "".join(f"{line}\n" for line in _lines(groups, category_of)))
    title = f"{report['task']}, {report['split']}: {report['model']}"
    write_atomically(stem.with_suffix(".html"), transcript_page(title, groups, category_of, SHOWN_RESPONSES))


def _lines(groups: Sequence[ScoredGroup], category_of: CategoryOf) -> Iterator[str]:
    """Yield one line per group. JSON escapes every line break that a model wrote."""
    for group in groups:
        pairs = list(zip(group.responses, group.verdicts, strict=True))
        yield json_text(record(group, pairs, category_of(group.prompt.problem)))
