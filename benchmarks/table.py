"""The kept results as the tables of docs/learner.md.

python benchmarks/table.py             # print them
python benchmarks/table.py --write     # and put them into the document, between its marks
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import RESULTS

DOCUMENT = RESULTS.parents[1] / "docs" / "learner.md"
MARKS = "<!-- benchmarks/table.py writes from here -->\n", "<!-- to here -->"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into docs/learner.md")
    text = tables(RESULTS)
    print(text)
    if parser.parse_args().write:
        before, _, after = split(DOCUMENT.read_text(encoding="utf-8"))
        DOCUMENT.write_text("".join([before, text, after]), encoding="utf-8")


def split(document: str) -> tuple[str, str, str]:
    """What is before the tables, the tables, and what is behind them; marks are before and behind."""
    first, last = map(re.escape, MARKS)
    parts = re.fullmatch(f"(.*{first})(.*)({last}.*)", document, re.DOTALL)
    if parts is None:
        raise ValueError(f"the document has no lines {MARKS[0]!r} and {MARKS[1]!r}")
    before, between, behind = parts.groups()
    return before, between, behind


def tables(results: Path) -> str:
    """Markdown: what was measured against what is wanted, and the medians of all ways."""
    found = {
        (file.stem, name): case
        for file in sorted(results.glob("*.json"))
        for name, case in json.loads(file.read_text(encoding="utf-8")).items()
        if "targets" in case  # the learner's; others have documents of their own
    }
    lines = [
        "| benchmark | case | what | measured | wanted | holds |",
        "|---|---|---|---|---|---|",
        *(row for (script, name), case in found.items() for row in _target_rows(script, name, case)),
        "",
        "| benchmark | case | times of each | medians | commit |",
        "|---|---|---|---|---|",
        *(row for (script, name), case in found.items() for row in _median_rows(script, name, case)),
    ]
    return "\n".join(lines) + "\n"


def _target_rows(script: str, name: str, case: dict[str, Any]) -> Iterator[str]:
    for what, target in case["targets"].items():
        wanted = f"≥ {target['at_least']:g}" if "at_least" in target else f"< {target['below']:g}"
        holds = "yes" if target["holds"] else "**no**"
        yield f"| {script} | {name} | {what} | {target['measured']:.3g} | {wanted} | {holds} |"


def _median_rows(script: str, name: str, case: dict[str, Any]) -> Iterator[str]:
    if "median_s" in case:
        medians = ", ".join(f"{way} {seconds:.3g} s" for way, seconds in case["median_s"].items())
        times = len(next(iter(case["seconds"].values())))
        yield f"| {script} | {name} | {times} | {medians} | {case['commit']} |"


if __name__ == "__main__":
    main()
