"""Run the trainings of a comparison as separate processes, one after the other or several at a time.

Finished runs are skipped and interrupted runs are resumed, because each run has its own directory and `launch.py train`
resumes by itself. A failed run does not affect the other runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import psutil

from cluster.commands.compare.plan import Comparison, PlannedRun, Tuning
from cluster.core import ending
from cluster.core.files import open_to_append
from cluster.core.reading import RECORD_MIB, read_bytes
from cluster.run_state.run_directory import RunDirectory
from cluster.runtime import signals

POLL_S = 0.5
STOP_TIMEOUT_S = 30.0
"""The time that an interrupted training has to end before it receives the next, stronger signal."""
HURRIED_S = signals.FORCED_AFTER_S + 10.0
"""The time that a training has to end after its second signal, at which it hurries too."""
FORCED_AFTER_S = HURRIED_S + 20.0
"""The time after the second signal at which the comparison itself is ended by force."""
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


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


def trials_of(plan: Comparison | Tuning) -> list[Trial]:
    """Return all runs, with the finished ones marked."""
    trials = [Trial(run, plan.directory / "logs" / f"{run.name}.log") for run in plan.runs]
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
        KeyboardInterrupt: on Ctrl-C, SIGTERM or SIGHUP, after the trainings were interrupted too and have ended.
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
    with open_to_append(trial.log_file) as log:
        trial.process = subprocess.Popen(
            [*command, "train", *trial.run.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches the training once, through `_stop`
            preexec_fn=_end_with_parent,
        )
    trial.state, trial.started_at = State.RUNNING, time.monotonic()


def _end_with_parent() -> None:
    """Let a training receive SIGTERM when the comparison is killed, so that it ends in order too."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _ended(trial: Trial) -> bool:
    assert trial.process is not None
    exit_code = trial.process.poll()
    if exit_code is None:
        return False
    # A finished run has a summary. A process that exits with 0 without writing one has not finished its run.
    trial.state = State.FINISHED if exit_code == 0 and trial.directory.is_finished else State.FAILED
    return True


def _stop(running: Sequence[Trial]) -> None:
    """Interrupt the running trainings, which have checkpoints, and return when they have ended. A second signal makes
    them hurry: it follows after `STOP_TIMEOUT_S`, or when the comparison itself receives one. Then they are killed."""
    processes = [trial.process for trial in running if trial.process]

    def have_ended() -> bool:
        return all(process.poll() is not None for process in processes)

    for number, timeout_s, hurried_s in (
        (signal.SIGINT, STOP_TIMEOUT_S, 0.0),
        (signal.SIGTERM, HURRIED_S, HURRIED_S),
    ):
        for process in processes:
            process.send_signal(number)  # to none that has ended
        if ending.wait_patiently(have_ended, timeout_s, hurried_s):
            return
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            signals.kill_tree(psutil.Process(process.pid))
        process.wait()


def last_line(log_file: Path) -> str:
    """Return the last line that a training printed, which usually is the reason why it stopped."""
    text = read_bytes(log_file, RECORD_MIB).decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    messages = [line for line in lines if line and "logs: " not in line]
    return messages[-1] if messages else "it printed nothing"
