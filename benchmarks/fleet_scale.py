"""Measure the controller's overhead with 1, 16, 64 and 256 workers and 16,384 responses per step.

Engines are simulated (simulated_engines.py): a response takes 2 to 8 seconds of sleep, and training takes 2 seconds.
So a step would take 10 seconds if nothing else took any time; the time above that is the overhead. The run is
on-policy. So every step waits for all of the controller's work: 1,024 prompts are admitted, leased and sent. 16,384
responses return one by one, each with the log-probabilities of 256 tokens. They are scored in another process,
delivered, and built into a training batch. The weights are published, and all workers pull them. Controller,
scheduler, work buffer, reward pool, tracking and Ray are real.

    python benchmarks/fleet_scale.py                  # 6 minutes on two cores
    python benchmarks/fleet_scale.py --cases 256

The results of each case replace its earlier ones, in the file and in the plot. Other cases are kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import RESULTS, Target, checked, write_cases

if TYPE_CHECKING:
    from cluster.core.config import RunConfig
    from cluster.core.types import PolicyVersion, TrainingBatch
    from cluster.run_state.run_directory import RunDirectory
    from cluster.tracking import Tracker
    from cluster.training.controller import Controller
    from reward.service import RewardPool
    from rollout.fleet.fleet import RolloutFleet

CASES = ("1", "16", "64", "256")
LEARN_S, SHORTEST_S, LONGEST_S = 2.0, 2.0, 8.0
IDEAL = "ideal step / step with {} workers"
RESPONSE_TOKENS = 256
NOT_COUNTED = 1
"""The number of first steps that are not measured."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="numbers of workers")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument(
        "--smoke", action="store_true", help="few responses and short sleeps, to check that it runs"
    )
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/fleet_scale.json")
    parser.add_argument(
        "--measure", type=int, help=argparse.SUPPRESS
    )  # this process is the controller of one case
    arguments = parser.parse_args()
    if arguments.measure:
        print("FOUND", json.dumps(measure(arguments.measure, arguments.steps, arguments.smoke)))
        return
    for case in ["16"] if arguments.smoke else arguments.cases:
        print(f"{case} workers", flush=True)
        found = in_its_own_process(case, 3 if arguments.smoke else arguments.steps, arguments.smoke)
        target = Target(IDEAL.format(case), 1 / 1.05)
        write_cases(
            "fleet_scale", {case: found | {"targets": checked(found["ratios"], [target])}}, arguments.output
        )
    if not arguments.smoke:
        draw(arguments.output or RESULTS / "fleet_scale.json")


def in_its_own_process(case: str, steps: int, smoke: bool) -> dict[str, Any]:
    """Run a case in its own process, so that memory and processor time are those of one controller."""
    command = [
        sys.executable,
        __file__,
        "--measure",
        case,
        "--steps",
        str(steps),
        *(["--smoke"] if smoke else []),
    ]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    (line,) = [line for line in process.stdout.splitlines() if line.startswith("FOUND ")]
    found: dict[str, Any] = json.loads(line.removeprefix("FOUND "))
    return found


def measure(workers: int, steps: int, smoke: bool) -> dict[str, Any]:
    """Run `steps` steps and return the measurements."""
    from cluster.core.config import RunConfig
    from cluster.runtime.connect import connect

    scale = 0.05 if smoke else 1.0
    connect(RunConfig().cluster)
    with tempfile.TemporaryDirectory() as directory:
        config = RunConfig.model_validate(
            {
                "directory": directory,
                "steps": steps,
                "rollout": {
                    "workers": workers,
                    "prompts_per_step": 64 if smoke else 1024,
                    "responses_per_prompt": 16,
                    "inflight_prompts_per_worker": 1024,
                },
                "evaluation": {"every_steps": 10**6},
                "checkpoint": {"every_steps": 10**6},
                "tracking": {"wandb": "disabled"},
            }
        )
        return asyncio.run(_measured_run(config, scale))


async def _measured_run(config: RunConfig, scale: float) -> dict[str, Any]:
    import ray

    from benchmarks.simulated_engines import EngineHost, Engines, VerifierRunner
    from cluster.core.actor import Actor
    from cluster.run_state.run_directory import RunDirectory
    from cluster.tracking import RunConsole, Tracker, read_metrics
    from cluster.training.session import frozen_garbage
    from reward.service import RewardPool

    engines = Engines(
        response_tokens=RESPONSE_TOKENS, shortest_s=SHORTEST_S * scale, longest_s=LONGEST_S * scale
    )
    start_host = ray.remote(EngineHost).options(num_cpus=0, max_concurrency=4000)
    hosts = [start_host.remote(engines) for _ in range(min(2, config.rollout.workers))]
    scorers = [ray.remote(VerifierRunner).options(num_cpus=0, max_concurrency=1000).remote()]
    rewards = RewardPool([Actor(scorer) for scorer in scorers], timeout_s=300, truncated_is_incorrect=True)
    learner = SleepingLearner(LEARN_S * scale, hosts)
    directory = RunDirectory(config.run_directory)
    with (
        RunConsole(config.name, config.steps, quiet=True) as console,
        Tracker(config, directory, console) as tracker,
    ):
        async with asyncio.TaskGroup() as background:
            fleet = _fleet(config, hosts, directory, rewards, console.event, background)
            controller = _controller(config, fleet, learner, directory, tracker)
            with frozen_garbage():
                await controller.run()
            await fleet.stop()
    rows = [row for row in read_metrics(directory.metrics_file) if row["step"] > NOT_COUNTED]
    assert {row["fleet/healthy_workers"] for row in rows} == {float(config.rollout.workers)}
    return _found(config, rows, learner.marks[NOT_COUNTED:], (LEARN_S + LONGEST_S) * scale)


class SleepingLearner:
    """A learner whose update is a sleep. It notes the processor time and memory at each publication."""

    def __init__(self, learn_s: float, hosts: Sequence[Any]) -> None:
        self._learn_s = learn_s
        self._hosts = hosts
        self.marks: list[dict[str, float]] = []

    async def learn(self, mini_batches: Sequence[TrainingBatch]) -> dict[str, float]:
        await asyncio.sleep(self._learn_s)
        return {"logprob_gap/mean": 0.0, "logprob_gap/max": 0.0, "learner_tokens": 1.0}

    async def publish(self, version: int) -> PolicyVersion:
        import numpy as np
        import psutil
        import ray

        from cluster.core.types import PolicyVersion

        self.marks.append(
            {
                "controller_cpu_s": time.process_time(),
                "engines_cpu_s": sum(await asyncio.gather(*(host.cpu_s.remote() for host in self._hosts))),
                "memory_mib": psutil.Process().memory_info().rss / 2**20,
            }
        )
        return PolicyVersion(version, ray.put(np.zeros(2**20, dtype=np.uint8)), (), ())

    async def save(self, directory: Path) -> dict[Path, Any]:
        directory.mkdir()
        return {}


def _fleet(
    config: RunConfig,
    hosts: Sequence[Any],
    directory: RunDirectory,
    rewards: RewardPool,
    on_event: Callable[[str], None],
    background: asyncio.TaskGroup,
) -> RolloutFleet:
    from benchmarks.simulated_engines import HostedWorkerFactory
    from cluster.core.weight_transport import CoordinatorContext
    from rollout.fleet.fleet import RolloutFleet
    from rollout.weights.pull import PullCoordinator

    coordinator = PullCoordinator(
        CoordinatorContext(config.rollout.update_timeout_s, 1, None, on_event, background)
    )
    factory = HostedWorkerFactory(hosts, directory)
    return RolloutFleet(config, factory, rewards, coordinator, on_event, background)


def _controller(
    config: RunConfig, fleet: RolloutFleet, learner: Any, directory: RunDirectory, tracker: Tracker
) -> Controller:
    """Return a controller of a run with one problem, which is asked again and again."""
    from cluster.core.types import Prompt, Sampling
    from cluster.run_state.checkpoints import CheckpointStore
    from cluster.training.controller import Controller
    from cluster.training.prompts import PromptSource, TokenizedProblem
    from reward.tasks.countdown.puzzles import Puzzle
    from rollout.engine.tokenizer import EncodedPrompt

    def sampling(prompt_id: str) -> Sampling:
        return Sampling(config.rollout.responses_per_prompt, 1.0, RESPONSE_TOKENS, None)

    problem = Puzzle((1, 2, 3), 6)
    encoded = EncodedPrompt("question", tuple(range(64)))
    eval_prompt = Prompt("eval/0", encoded.text, encoded.token_ids, problem, sampling("eval/0"))
    return Controller(
        config,
        PromptSource([TokenizedProblem(problem, encoded)] * 10_000, config.seed, sampling),
        [eval_prompt],
        fleet,
        learner,
        CheckpointStore(directory.checkpoints, keep=1),
        tracker,
    )


def _found(
    config: Any, rows: list[dict[str, float]], marks: list[dict[str, float]], ideal_s: float
) -> dict[str, Any]:
    """Return the medians over the steps, and the individual values."""
    workers, samples = config.rollout.workers, config.responses_per_step
    used = {
        key: [after[key] - before[key] for before, after in pairwise(marks)]
        for key in ("controller_cpu_s", "engines_cpu_s")
    }
    steps = {
        f"{part}_s": [row[f"time/{part}_s"] for row in rows]
        for part in ("step", "rollout", "learn", "publish")
    }
    step_s, cpu_s = statistics.median(steps["step_s"]), statistics.median(used["controller_cpu_s"])
    memory = [mark["memory_mib"] for mark in marks]
    return {
        "sizes": {
            "workers": workers,
            "responses_per_step": samples,
            "response_tokens": 256,
            "steps": len(rows),
        },
        "seconds": {key: [round(value, 3) for value in values] for key, values in (steps | used).items()},
        "median_s": {
            "step": round(step_s, 3),
            "ideal step": ideal_s,
            "controller's processor": round(cpu_s, 3),
        },
        "overhead_share": round(step_s / ideal_s - 1, 4),
        "controller_us_per_sample": round(1e6 * cpu_s / samples, 1),
        "controller_memory_mib": [round(value) for value in memory],
        "ratios": {IDEAL.format(workers): round(ideal_s / step_s, 4)},
    }


def draw(results: Path) -> None:
    """Plot overhead, processor time and memory over the number of workers, into a file next to the results."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "fleet_scale"  # makes the file reproducible
    cases = sorted(
        json.loads(results.read_text(encoding="utf-8")).values(), key=lambda case: case["sizes"]["workers"]
    )
    workers = [case["sizes"]["workers"] for case in cases]
    drawn = (
        ("overhead, % of a 10 s step", [100 * case["overhead_share"] for case in cases], 5.0),
        ("controller's processor, µs per sample", [case["controller_us_per_sample"] for case in cases], None),
        ("controller's memory, MiB", [max(case["controller_memory_mib"]) for case in cases], None),
    )
    figure, axes = pyplot.subplots(1, len(drawn), figsize=(12, 3.4), layout="constrained")
    for axis, (title, values, limit) in zip(axes, drawn, strict=True):
        axis.plot(workers, values, marker="o")
        if limit:
            axis.axhline(limit, linestyle="--", color="grey")
        axis.set(
            title=title, xlabel="rollout workers", xscale="log", xticks=workers, xticklabels=workers, ylim=0
        )
        axis.minorticks_off()
    figure.savefig(results.with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
