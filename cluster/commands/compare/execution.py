"""Runs the trainings of a comparison as processes of their own, one after the other or some side by side.

What is finished is not run again, and what was interrupted goes on: `launch.py train` sees to that by itself, since
each run has its directory. A run that fails costs the others nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cluster.commands.compare.plan import Comparison, PlannedRun
from cluster.run_state.run_directory import RunDirectory

POLL_S = 0.5
STOP_TIMEOUT_S = 30.0
"""How long an interrupted training may take to put its things away before it is told more firmly."""


class State(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(slots=True)
class Trial:
    """One run and how it is doing."""

    run: PlannedRun
    log_file: Path
    state: State = State.WAITING
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.run.config.run_directory)


def trials_of(comparison: Comparison) -> list[Trial]:
    """All runs, those that are finished already marked as such."""
    trials = [Trial(run, comparison.directory / "logs" / f"{run.name}.log") for run in comparison.runs]
    for trial in trials:
        if trial.directory.is_finished:
            trial.state = State.FINISHED
    return trials


def run_trials(
    trials: Sequence[Trial],
    command: Sequence[str],
    side_by_side: int,
    on_change: Callable[[Trial], None],
    on_tick: Callable[[], None] = lambda: None,
) -> None:
    """Run what is not finished, at most `side_by_side` at a time; returns when nothing is left to run.

    Args:
        command: what `train` and its arguments are added to, as `[python, launch.py]`.
        on_change: is told of every trial that begins or ends.
        on_tick: is called twice a second meanwhile.

    Raises:
        KeyboardInterrupt: after the trainings were interrupted too, and have ended.
    """
    waiting = [trial for trial in trials if trial.state is State.WAITING]
    running: list[Trial] = []
    try:
        while waiting or running:
            while waiting and len(running) < side_by_side:
                running.append(trial := waiting.pop(0))
                _start(trial, command)
                on_change(trial)
            for trial in [trial for trial in running if _ended(trial)]:
                running.remove(trial)
                on_change(trial)
            on_tick()
            if running:
                time.sleep(POLL_S)
    finally:
        _stop(running)


def _start(trial: Trial, command: Sequence[str]) -> None:
    trial.log_file.parent.mkdir(parents=True, exist_ok=True)
    with trial.log_file.open("ab") as log:
        trial.process = subprocess.Popen(
            [*command, "train", *trial.run.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches it through us, once
        )
    trial.state, trial.started_at = State.RUNNING, time.monotonic()


def _ended(trial: Trial) -> bool:
    assert trial.process is not None
    exit_code = trial.process.poll()
    if exit_code is None:
        return False
    # The summary is the seal: what exits with 0 and did not write it is not finished.
    trial.state = State.FINISHED if exit_code == 0 and trial.directory.is_finished else State.FAILED
    return True


def _stop(running: Sequence[Trial]) -> None:
    """Interrupt what still runs; it has its checkpoints. What does not listen is terminated, and then killed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        alive = [trial.process for trial in running if trial.process and trial.process.poll() is None]
        for process in alive:
            os.killpg(process.pid, number)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in alive:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                break


def last_line(log_file: Path) -> str:
    """What a training said last: mostly why it stopped."""
    lines = [line.strip() for line in log_file.read_text(encoding="utf-8", errors="replace").splitlines()]
    said = [line for line in lines if line and "logs: " not in line]
    return said[-1] if said else "it said nothing"
