"""Keep what comparisons of objectives found, and show it in docs/evidence.md.

    python launch.py compare configs/compare_sparse.yaml --side-by-side 2
    python benchmarks/evidence.py keep runs/sparse     # into benchmarks/results/evidence/sparse.json
    python benchmarks/evidence.py show                 # print the tables of the toy and of all kept comparisons
    python benchmarks/evidence.py show --write         # also write them into the document, between the marks

A kept comparison has all numbers of its `comparison.json`, the mean reward of every batch and the pass@1 of every
evaluation of each run, and the code and the machine that computed them.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.marks import write_part
from benchmarks.report import RESULTS, conditions
from cluster.commands.compare.results import shown
from cluster.metrics.intervals import Estimate
from cluster.metrics.run_measures import MEASURES, PASS_AT_1, REWARD, Row, curve
from cluster.tracking.jsonl import read_metrics

KEPT = RESULTS / "evidence"
DOCUMENT = RESULTS.parents[1] / "docs" / "evidence.md"
MARKS = "<!-- benchmarks/evidence.py writes the runs from here -->\n", "<!-- to here: runs -->"
TOY = RESULTS / "toy_map.json"
TOY_MARKS = "<!-- benchmarks/evidence.py writes the toy from here -->\n", "<!-- to here: toy -->"
MEASURES_BY_KEY = {measure.key: measure for measure in MEASURES}
COMPARED = ("reward_early", "reward_area", "pass_at_1_final", "pass_at_k_final")
"""The measures that are shown with their differences from the baseline."""
COLUMNS = (*COMPARED, "entropy_final", "clipped", "alpha")
"""The measures that are shown."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    keeping = commands.add_parser("keep", help="keep the results of a comparison")
    keeping.add_argument("directory", type=Path, help="the directory of the comparison, such as runs/sparse")
    keeping.add_argument("--output", type=Path, default=KEPT, help="the directory of the kept results")
    showing = commands.add_parser("show", help="print the tables")
    showing.add_argument("--write", action="store_true", help="into docs/evidence.md")
    arguments = parser.parse_args()
    if arguments.command == "keep":
        print(f"written to {keep(arguments.directory, arguments.output)}")
        return
    for marks, text in ((TOY_MARKS, toy_tables(TOY)), (MARKS, tables(KEPT))):
        print(text)
        if arguments.write:
            write_part(DOCUMENT, marks, text)


def keep(directory: Path, output: Path) -> Path:
    """Write the results of a comparison and the rewards of its batches into `output`. Return the file."""
    comparison = json.loads((directory / "comparison.json").read_text(encoding="utf-8"))
    rows = {
        name: list(read_metrics(directory / name / "metrics.jsonl"))
        for name in comparison["runs"]
        if name not in comparison["missing"]
    }
    found = {
        **conditions(),
        "comparison": comparison,
        "rewards": {name: values_of(found, REWARD) for name, found in rows.items()},
        "pass_at_1": {name: values_of(found, PASS_AT_1) for name, found in rows.items()},
        "responses": {name: responses_at_evaluations(found) for name, found in rows.items()},
    }
    file = output / f"{comparison['name']}.json"
    output.mkdir(parents=True, exist_ok=True)
    file.write_text(compact(found) + "\n", encoding="utf-8")
    return file


def values_of(rows: Sequence[Row], key: str) -> list[float]:
    """Return the finite values of a metric, with four decimals."""
    return [round(value, 4) for _, value in curve(rows, key)]


def responses_at_evaluations(rows: Iterable[Row]) -> list[int]:
    """Return how many responses the run had sampled for training at each evaluation."""
    sampled, found = 0, []
    for row in rows:
        sampled = int(row.get("progress/responses_sampled", sampled))
        if PASS_AT_1 in row:
            found.append(sampled)
    return found


def compact(found: Mapping[str, Any]) -> str:
    """Return JSON with one line for each list of numbers."""
    text = json.dumps(found, indent=1, ensure_ascii=False)
    return re.sub(r"\[[^][{}]*\]", lambda match: re.sub(r"\s*\n\s*", " ", match[0]), text)


def tables(kept: Path) -> str:
    """Return Markdown tables of all kept comparisons."""
    return "\n".join(
        line
        for file in sorted(kept.glob("*.json"))
        for line in _study(json.loads(file.read_text(encoding="utf-8")))
    )


def toy_tables(file: Path) -> str:
    """Return Markdown tables of the toy: the area under the reward's curve of each objective at its best rate."""
    cases = json.loads(file.read_text(encoding="utf-8"))
    lines: list[str] = []
    for start in dict.fromkeys(case.partition(",")[0] for case in cases):
        of_start = {case.rpartition(" ")[2]: kept for case, kept in cases.items() if case.startswith(start)}
        head = [start, *(f"{steps} steps: early, area, difference, rate" for steps in of_start)]
        names = next(iter(of_start.values()))["objectives"]
        rows = [
            [name, *(_toy_cell(kept["objectives"][name]) for kept in of_start.values())] for name in names
        ]
        lines += [*_table([head, *rows]), ""]
    return "\n".join(lines)


def _toy_cell(found: Mapping[str, Any]) -> str:
    early, area = found["reward_early"], found["reward_area"]
    difference, half_width = area["difference"], area["difference_half_width"]
    mark = " *" if abs(difference) > half_width else ""
    rate = f"{found['rate']:g}"
    first, *_, last = found["area_by_rate"]
    edge = " (edge)" if rate in (first, last) else ""
    return (
        f"{early['mean']:.3f}, {area['mean']:.3f}, {difference:+.3f} ± {half_width:.3f}{mark}, {rate}{edge}"
    )


def _study(found: Mapping[str, Any]) -> Iterator[str]:
    comparison = found["comparison"]
    seeds = ", ".join(map(str, comparison["seeds"]))
    yield f"### {comparison['name']}\n"
    yield f"Seeds {seeds}; commit {found['commit']}; {found['machine']['processor']}.\n"
    yield from _table(_cells(comparison, COLUMNS, "estimate", signed=False))
    yield f"\nDifference from {comparison['baseline']}, paired by seed (`*`: the interval excludes 0):\n"
    yield from _table(_cells(comparison, COMPARED, "difference", signed=True))
    if comparison["tuning"] is not None:
        yield ""
        yield from _tuning(comparison["tuning"])
    yield ""


def _tuning(tuning: Mapping[str, Any]) -> Iterator[str]:
    seeds = ", ".join(map(str, tuning["seeds"]))
    yield f"Chosen by {tuning['measure']} on the seeds {seeds}, by {tuning['setting']}:\n"
    rows = []
    for variant, choice in tuning["variants"].items():
        means = {float(value): mean for value, mean in choice["means"].items()}
        shown = (f"{means[value]:.3f}" if value in means else "–" for value in tuning["values"])
        rows.append([variant, *shown, "–" if choice["chosen"] is None else f"{choice['chosen']:g}"])
    yield from _table([["variant", *(f"{value:g}" for value in tuning["values"]), "chosen"], *rows])


def _cells(
    comparison: Mapping[str, Any], columns: Sequence[str], kind: str, *, signed: bool
) -> list[list[str]]:
    measures = comparison["measures"]
    variants = [
        variant
        for variant in next(iter(measures.values()))
        if not (signed and variant == comparison["baseline"])
    ]
    head = ["variant", *(MEASURES_BY_KEY[column].title for column in columns)]
    rows = [
        [
            variant,
            *(
                shown(_estimate(measures[column][variant][kind]), MEASURES_BY_KEY[column], signed=signed)
                for column in columns
            ),
        ]
        for variant in variants
    ]
    return [head, *rows]


def _estimate(kept: Mapping[str, Any]) -> Estimate:
    mean = math.nan if kept["mean"] is None else kept["mean"]
    return Estimate(mean, kept["half_width"], kept["count"])


def _table(rows: list[list[str]]) -> Iterator[str]:
    for cells in [rows[0], ["---"] * len(rows[0]), *rows[1:]]:
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
