"""Compare the memory that `launch.py check` estimates for a learner rank with that of real runs on the CPU.

Each case is a run of two steps: from the second step on, the optimizer's moments exist during backward. Meanwhile the
memory of the learner's process is read every 10 ms, without the shared memory that holds published weights. A shaping
reward that depends on the text of a response gives every group variance, because groups without it are not computed.

    plain            SmolLM2-135M, float32, ZeRO 2, as configs/countdown_smollm2.yaml, with larger micro-batches
    checkpointing    the same with gradient checkpointing
    adapters         the same as plain with low-rank adapters

    python benchmarks/memory_estimate.py               # 10 minutes on two cores

Target: the smaller one of measured and estimated memory is at least 0.85 of the larger one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.cases import TINY, Case
from benchmarks.report import Target, checked, write_cases
from cluster.configuration.loading import load_config
from cluster.configuration.memory import GIB, learner_memory
from cluster.configuration.model_shape import find_shape
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking import read_metrics

PROJECT = Path(__file__).parents[1]
CONFIG_FILE = PROJECT / "configs" / "countdown_smollm2.yaml"
INTERVAL_S = 0.01
VARIED = "import zlib\ndef reward(problem, response): return zlib.crc32(response.encode()) % 1000 / 1000\n"
"""A module with a reward that differs between the responses of a group."""
TARGET = Target("smaller / larger of measured and estimated", 0.85)
CASES: dict[str, dict[str, Any]] = {
    "plain": {"learner.gradient_checkpointing": False},
    "checkpointing": {"learner.gradient_checkpointing": True},
    "adapters": {"learner.gradient_checkpointing": False, "learner.lora_rank": 16},
}
SETTINGS: dict[str, Any] = {
    "name": "memory",
    "steps": 2,
    "rollout.workers": 1,
    "rollout.prompts_per_step": 4,
    "learner.micro_batch_tokens": 1280,  # two groups of eight responses of 64 tokens
    "evaluation.every_steps": 10**6,
    "evaluation.prompts": 1,
    "evaluation.responses_per_prompt": 1,
    "checkpoint.every_steps": 10**6,
    "tracking.wandb": "disabled",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--smoke", action="store_true", help="a tiny model, to check that it runs")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/memory_estimate.json")
    arguments = parser.parse_args()
    cases = ["plain"] if arguments.smoke else arguments.cases
    with ExitStack() as stack:
        settings = dict(SETTINGS)
        if arguments.smoke:
            model = stack.enter_context(Case(TINY, 1, 2, (8, 8), (8, 8), 64, 1).model_directory())
            settings |= {
                "model.source": str(model),
                "model.max_context_tokens": 256,
                "task.options.style": "compact",
            }
        for name in cases:
            write_cases("memory_estimate", {name: measured(settings | CASES[name])}, arguments.output)


def measured(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Run a training. Return the measured and the estimated memory of its learner rank."""
    with tempfile.TemporaryDirectory() as directory:
        given = [f"{key}={value}" for key, value in {**settings, "directory": directory}.items()]
        given.append("reward.shaping=[{function: 'varied:reward', weight: 1.0}]")
        (Path(directory) / "varied.py").write_text(VARIED)
        log = Path(directory) / "log"
        with open(log, "w") as output:
            command = [sys.executable, str(PROJECT / "launch.py"), "train", str(CONFIG_FILE), *given]
            run = subprocess.Popen(command, cwd=directory, stdout=output, stderr=subprocess.STDOUT)
            peak = peak_of_learner(run)
        if run.returncode:
            raise SystemExit(f"the run failed:\n{log.read_text()}")
        config = load_config(CONFIG_FILE, given).config
        rows = list(read_metrics(RunDirectory(config.run_directory).metrics_file))[1:]
    assert all(row["reward/zero_variance_fraction"] == 0 for row in rows), rows
    estimate = learner_memory(config, find_shape(config))
    found = {TARGET.ratio: round(min(peak, estimate.total) / max(peak, estimate.total), 3)}
    return {
        "measured_gib": round(peak / GIB, 3),
        "estimated_gib": round(estimate.total / GIB, 3),
        "parts_gib": {part.name: round(part.size / GIB, 3) for part in estimate.parts},
        "ratios": found,
        "targets": checked(found, [TARGET]),
    }


def peak_of_learner(run: subprocess.Popen[bytes]) -> int:
    """Wait for the end of the run. Return the peak memory of its learner process in bytes."""
    peak, learner = 0, None
    while run.poll() is None:
        with suppress(psutil.NoSuchProcess):
            if learner is None:
                learner = learner_of(psutil.Process(run.pid))
            else:
                memory = learner.memory_info()
                peak = max(peak, memory.rss - memory.shared + file_bytes(learner))
        time.sleep(INTERVAL_S if learner is not None else 0.5)
    return peak


def learner_of(parent: psutil.Process) -> psutil.Process | None:
    """Return the process of the learner rank among the descendants of `parent`."""
    for process in parent.children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "LearnerRank" in " ".join(process.cmdline()):
                return process
    return None


def file_bytes(process: psutil.Process) -> int:
    """Return the resident bytes of mapped files, such as the code of libraries and the weights as they were loaded."""
    status = Path(f"/proc/{process.pid}/status")
    try:
        lines = status.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(process.pid) from error
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssFile:"))


if __name__ == "__main__":
    main()
