"""Run the trainings of a comparison as separate processes, one after the other or several at a time.

Finished runs are skipped and interrupted runs are resumed, because each run has its own directory and `launch.py train`
resumes by itself. A failed run does not affect the other runs.
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
"""The time that an interrupted training has to end before it receives the next, stronger signal."""


class State(Enum):
    """The state of one run of a comparison."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(slots=True)
class Trial:
    """One run of a comparison with its state."""

    run: PlannedRun
    log_file: Path
    state: State = State.WAITING
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0

    @property
    def directory(self) -> RunDirectory:
        """The directory of the run."""
        return RunDirectory(self.run.config.run_directory)


def trials_of(comparison: Comparison) -> list[Trial]:
    """Return all runs, with the finished ones marked."""
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
    """Run the trials that are not finished, at most `side_by_side` at a time. Return when none is left.

    Args:
        command: The command to which `train` and its arguments are appended, such as `[python, launch.py]`.
        on_change: Called with every trial that starts or ends.
        on_tick: Called twice a second.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after the trainings were interrupted too and have ended.
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
            start_new_session=True,  # so that Ctrl-C reaches the training once, through `_stop`
        )
    trial.state, trial.started_at = State.RUNNING, time.monotonic()


def _ended(trial: Trial) -> bool:
    assert trial.process is not None
    exit_code = trial.process.poll()
    if exit_code is None:
        return False
    # A finished run has a summary. A process that exits with 0 without writing one has not finished its run.
    trial.state = State.FINISHED if exit_code == 0 and trial.directory.is_finished else State.FAILED
    return True


def _stop(running: Sequence[Trial]) -> None:
    """Interrupt the running trainings, which have checkpoints. Terminate and then kill those that do not end."""
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
    """Return the last line that a training printed, which usually is the reason why it stopped."""
    lines = [line.strip() for line in log_file.read_text(encoding="utf-8", errors="replace").splitlines()]
    messages = [line for line in lines if line and "logs: " not in line]
    return messages[-1] if messages else "it printed nothing"
