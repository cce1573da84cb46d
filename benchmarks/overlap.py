"""Measure the overlap of training and sampling in whole runs of a small model, on-policy and one batch ahead.

    in turn      max_staleness 0: a step samples, then trains, then publishes. Each part is timed.
    overlapped   max_staleness 1: the next batch is sampled while the learner trains on the current one

There are one rollout worker and one learner rank with a thread each, so on two cores neither slows the other down.
Ray, the controller and the verdicts take time from both. The model is the demonstration's, which solves some
problems: with a model that solves none there would be no gradient signal. It is built first if it does not exist
(three minutes).

    python benchmarks/overlap.py                       # 8 minutes on two cores

Target: step overlapped ≤ 1.15 × the longer one of sampling and training in turn.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.cases import TINY, Case
from benchmarks.report import Target, checked, write_cases
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking import read_metrics

PROJECT = Path(__file__).parents[1]
NOT_COUNTED = 3
"""The number of first steps that are not measured. The first batch has nothing to overlap with, and these steps include
all initialization."""
TARGET = Target("longer part / step overlapped", 1 / 1.15)
WAYS = {"in turn": 0, "overlapped": 1}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2, help="runs of each way, in turn")
    parser.add_argument("--smoke", action="store_true", help="few responses and steps, to check that it runs")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/overlap.json")
    arguments = parser.parse_args()
    repeats = 1 if arguments.smoke else arguments.repeats
    steps = NOT_COUNTED + 2 if arguments.smoke else arguments.steps
    parts: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        model = "starter"
        if arguments.smoke:
            model = str(stack.enter_context(Case(TINY, 1, 2, (8, 8), (8, 8), 64, 1).model_directory()))
        for turn in range(repeats):
            for way, staleness in WAYS.items():
                found = run(model, steps, staleness, prompts=4 if arguments.smoke else 64)
                parts[way] += found
                print(f"  {turn + 1}/{repeats} {way}: {means(found)}", flush=True)
    write_cases("overlap", {"tiny": assessment(parts)}, arguments.output)


def run(model: str, steps: int, max_staleness: int, prompts: int) -> list[dict[str, float]]:
    """Run a training. Return the seconds of each measured step, by part."""
    with tempfile.TemporaryDirectory() as directory:
        settings = {
            "name": "overlap",
            "directory": directory,
            "steps": steps,
            "model.source": model,
            "rollout.workers": 1,
            "rollout.max_staleness": max_staleness,
            "rollout.prompts_per_step": prompts,
            "learner.threads_per_rank": 1,
            "learner.warmup_steps": 0,
            "evaluation.every_steps": 10**6,
            "evaluation.prompts": 2,
            "evaluation.responses_per_prompt": 1,
            "checkpoint.every_steps": 10**6,
            "tracking.wandb": "disabled",
        }
        given = [f"{key}={value}" for key, value in settings.items()]
        command = [
            sys.executable,
            str(PROJECT / "launch.py"),
            "train",
            str(PROJECT / "configs/demo.yaml"),
            *given,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the run failed:\n{done.stdout}\n{done.stderr}")
        rows = list(read_metrics(RunDirectory(Path(directory) / "overlap").metrics_file))
    names = ("rollout", "learn", "publish", "step")
    return [
        {name: row[f"time/{name}_s"] for name in names}
        for row in rows
        if NOT_COUNTED < row["step"] < steps  # the last step has nothing to overlap with
    ]


def means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each part.

    Medians would mislead: two batches may be ready at once. Then one step does not wait, and the next waits for both.
    """
    return {name: round(statistics.fmean(row[name] for row in rows), 3) for name in rows[0]}


def assessment(parts: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    in_turn, overlapped = means(parts["in turn"]), means(parts["overlapped"])
    found = {
        TARGET.ratio: round(max(in_turn["rollout"], in_turn["learn"]) / overlapped["step"], 3),
        "step in turn / step overlapped": round(in_turn["step"] / overlapped["step"], 3),
    }
    return {
        "seconds": {
            f"{way}: {name}": [round(row[name], 4) for row in rows]
            for way, rows in parts.items()
            for name in rows[0]
        },
        "mean_s": {"in turn: " + name: value for name, value in in_turn.items()}
        | {"overlapped: " + name: value for name, value in overlapped.items()},
        "ratios": found,
        "targets": checked(found, [TARGET]),
    }


if __name__ == "__main__":
    main()
