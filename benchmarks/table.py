"""Turn the stored results into tables of the documents.

python benchmarks/table.py             # print the tables
python benchmarks/table.py --write     # also write them into the documents, between the marks
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.marks import write_part
from benchmarks.report import RESULTS

DOCS = RESULTS.parents[1] / "docs"
DOCUMENTS = {
    "learner.md": ("learner_ranks", "learner_speed", "logprob_memory"),
    "rollouts.md": ("rollout_throughput", "weight_publication", "weight_broadcast", "overlap"),
    "fleet.md": ("fleet_scale",),
    "gpu.md": ("memory_estimate",),
}
"""The benchmarks of each document. Benchmarks without targets (docs/rewards.md) are described in the text."""
MARKS = "<!-- benchmarks/table.py writes from here -->\n", "<!-- to here -->"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into docs/")
    write = parser.parse_args().write
    for name, benchmarks in DOCUMENTS.items():
        text = tables(RESULTS, benchmarks)
        print(f"{name}\n\n{text}")
        if write:
            write_part(DOCS / name, MARKS, text)


def tables(results: Path, benchmarks: Sequence[str]) -> str:
    """Return Markdown tables of the measured and required ratios, and of the medians of all variants."""
    found = {
        (name, case): kept
        for name in benchmarks
        if (file := results / f"{name}.json").exists()
        for case, kept in json.loads(file.read_text(encoding="utf-8")).items()
    }
    lines = [
        "| benchmark | case | what | measured | wanted | holds |",
        "|---|---|---|---|---|---|",
        *(row for (name, case), kept in found.items() for row in _target_rows(name, case, kept)),
        "",
        "| benchmark | case | times of each | medians | commit |",
        "|---|---|---|---|---|",
        *(row for (name, case), kept in found.items() for row in _median_rows(name, case, kept)),
    ]
    return "\n".join(lines) + "\n"


def _target_rows(name: str, case: str, kept: dict[str, Any]) -> Iterator[str]:
    for what, target in kept.get("targets", {}).items():
        wanted = f"≥ {target['at_least']:g}" if "at_least" in target else f"< {target['below']:g}"
        holds = "yes" if target["holds"] else "**no**"
        yield f"| {name} | {case} | {what} | {target['measured']:.3g} | {wanted} | {holds} |"


def _median_rows(name: str, case: str, kept: dict[str, Any]) -> Iterator[str]:
    if "median_s" in kept:
        medians = ", ".join(f"{way} {seconds:.3g} s" for way, seconds in kept["median_s"].items())
        times = len(next(iter(kept["seconds"].values())))
        yield f"| {name} | {case} | {times} | {medians} | {kept['commit']} |"
    if "measured_gib" in kept:
        sizes = f"measured {kept['measured_gib']:.2f} GiB, estimated {kept['estimated_gib']:.2f} GiB"
        yield f"| {name} | {case} | 1 | {sizes} | {kept['commit']} |"


if __name__ == "__main__":
    main()
