"""Start real runs as users do, wait for them, interrupt them, and check what they recorded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.core.config import RunConfig
from cluster.core.files import try_lock
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking.jsonl import read_metrics
from reward.registry import build_task
from tests import PROJECT


def start(config_file: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "launch.py", "train", str(config_file), *arguments],
        cwd=PROJECT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], config: RunConfig, timeout_s: float = 400) -> str:
    """Wait for the run and return its output. If the run failed, fail with its output and the logs of its actors."""
    output, _ = process.communicate(timeout=timeout_s)
    if process.returncode != 0:
        logs = sorted(RunDirectory(config.run_directory).logs.glob("*.log"))
        tails = [f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs]
        pytest.fail(f"exit code {process.returncode}\n{output}\n" + "\n".join(tails))
    return output


def launch(*arguments: str, timeout_s: float = 300) -> str:
    """Run another command and return its stdout."""
    result = subprocess.run(
        [sys.executable, "launch.py", *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def rows_of(config: RunConfig) -> list[dict[str, Any]]:
    return list(read_metrics(RunDirectory(config.run_directory).metrics_file))


def wait_for_step(
    config: RunConfig, step: int, process: subprocess.Popen[str], timeout_s: float = 500
) -> None:
    deadline = time.monotonic() + timeout_s
    while not any(row["step"] >= step for row in rows_of(config)):
        assert process.poll() is None, f"the run ended early:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline, f"step {step} was not reached within {timeout_s} s"
        time.sleep(0.2)


def assert_every_prompt_trained_once(rows: list[dict[str, Any]], config: RunConfig) -> None:
    """Assert that the run settled the first prompts of the data, each exactly once per epoch and in order.

    Prompts that are in flight when an asynchronous run ends may be missing. Prompts that dynamic sampling dropped are
    not trained on.
    """
    trained = [prompt for row in rows for prompt in row.get("prompts", [])]
    dropped = [prompt for row in rows for ids in row.get("dropped", {}).values() for prompt in ids]
    assert len(dropped) == rows[-1]["progress/prompts_dropped"]
    problems = len(build_task(config.task.name, config.task.options).problems("train"))
    assert len(trained) == config.steps * config.rollout.prompts_per_step
    settled = trained + dropped
    assert len(set(settled)) == len(settled)
    missing = 0
    for epoch in range(len(settled) // problems):
        rows_of_epoch = {
            int(prompt.split("/")[2]) for prompt in settled if prompt.startswith(f"train/{epoch}/")
        }
        missing += len(set(range(problems)) - rows_of_epoch)
    assert missing <= config.rollout.max_staleness * config.rollout.prompts_per_step


def interrupt(process: subprocess.Popen[str], *signals: signal.Signals) -> str:
    """End a command by signals. Assert that nothing of it is left, and return its output."""
    children = psutil.Process(process.pid).children(recursive=True)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.5)
    output, _ = process.communicate(timeout=120)
    assert "Traceback" not in output
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, f"still running: {[child.cmdline() for child in alive]}"
    assert not [weights for weights in Path("/dev/shm").glob("hpo-weights-*") if not is_in_use(weights)]
    return output


def is_in_use(weights: Path) -> bool:
    """Return whether a live worker, of another run on this machine, has these files."""
    try:
        with open(weights / "presence") as presence:
            return not try_lock(presence)
    except FileNotFoundError:
        return True
