"""Helpers of all benchmarks: measure variants in turn, and write results together with the environment."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Target:
    """A ratio to reach, by its name in the results."""

    ratio: str
    at_least: float


def complete(runner: asyncio.Runner, way: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Run one variant that is a coroutine function."""
    runner.run(way())


def seconds_in_turn(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Measure all variants in turn, repeatedly, so that other load on the machine affects all of them equally."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(round(time.perf_counter() - started, 4))
            print(f"  {turn + 1}/{repeats} {name}: {seconds[name][-1]:.3f} s", flush=True)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def ratios(median_s: Mapping[str, float], over: Iterable[str]) -> dict[str, float]:
    """Return the time of each variant in `over` relative to each other variant."""
    over = list(over)
    return {
        f"{reference} / {way}": round(median_s[reference] / value, 3)
        for reference in over
        for way, value in median_s.items()
        if way not in over
    }


def checked(found: Mapping[str, float], targets: Iterable[Target]) -> dict[str, Any]:
    return {
        target.ratio: {
            "at_least": round(target.at_least, 3),
            "measured": found[target.ratio],
            "holds": found[target.ratio] >= target.at_least,
        }
        for target in targets
    }


def conditions() -> dict[str, Any]:
    """Describe the software and the machine of a result."""
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ("torch", "transformers", "deepspeed", "trl", "ray")
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": processor,
            "cores": os.cpu_count(),
            "memory_gib": round(memory, 1),
            "load_1_5_15_min": [round(load, 2) for load in os.getloadavg()],
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def commit() -> str:
    """Return the commit, followed by "-dirty" if files other than results have changed; "unknown" without git."""
    if shutil.which("git") is None:
        return "unknown"
    git = ["git", "-C", str(RESULTS.parents[1])]
    commit, *_ = _lines([*git, "rev-parse", "--short", "HEAD"]) or ["unknown"]
    but_results = [":(top)", ":(top,exclude)benchmarks/results"]
    changed = _lines([*git, "status", "--porcelain", "--untracked-files=no", "--", *but_results])
    return f"{commit}-dirty" if changed else commit


def _lines(command: list[str]) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()


def write_cases(name: str, cases: Mapping[str, Mapping[str, Any]], output: Path | None) -> None:
    """Write JSON to `output`, or to `results/NAME.json` beside this file. Existing cases that are not in `cases` stay,
    since each case records its own environment."""
    path = output or RESULTS / f"{name}.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for case, found in cases.items():
        report[case] = {**conditions(), **found}
        if summary := found.get("targets") or found.get("ratios"):
            print(f"  {summary}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"  written to {path}", flush=True)
