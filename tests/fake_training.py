"""A fast replacement of `launch.py train CONFIG [KEY=VALUE]...`, for tests of the code that starts trainings.

A run with a learning rate of 13 or 14 fails, and one with 99 does not end until it is interrupted. Rewards are higher
with higher learning rates, and with `objective.name=gspo` with lower ones. Each start adds a line to the file `starts`
next to the run directory.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from cluster.configuration.loading import load_config
from cluster.core.config import RunConfig
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking.jsonl import MetricsFile


def main() -> None:
    assert sys.argv[1] == "train"
    loaded = load_config(Path(sys.argv[2]), sys.argv[3:])
    assert not loaded.problems, loaded.problems
    train(loaded.config)


def train(config: RunConfig) -> None:
    run = RunDirectory(config.run_directory)
    run.create()
    with (run.path.parent / "starts").open("a") as starts:
        starts.write(f"{config.name}\n")
    run.write_config(config)
    if config.learner.learning_rate in (13, 14):
        raise SystemExit("12:00:00  stopped: the moon is in the wrong phase")
    if config.learner.learning_rate == 99:
        try:
            (run.path / "waits").touch()
            time.sleep(600)
        except KeyboardInterrupt:
            (run.path / "interrupted").touch()
            raise SystemExit(130) from None
    with MetricsFile(run.metrics_file, run.superseded_metrics_file) as metrics:
        metrics.truncate_after(-1)
        rate = config.learner.learning_rate
        bonus = 1 - rate if config.objective.name == "gspo" else rate
        for step in range(config.steps + 1):
            pass_at_1 = 0.01 * step * (1 + config.seed) + bonus
            batch = {
                "reward/mean": 0.1 * step + bonus,
                "response_length/mean": 5.0,
                "objective/alpha": 0.25,
                "objective/entropy": 0.125,
                "objective/clip_fraction_low": 0.02,
                "objective/clip_fraction_high": 0.01,
            }
            evaluation = {"eval/pass_at_1": pass_at_1, "eval/pass_at_k": 2 * pass_at_1}
            metrics.log(step, {**(batch if step else {}), **evaluation})
    run.write_summary({"steps": config.steps})


if __name__ == "__main__":
    main()
