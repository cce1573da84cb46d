"""Ctrl-C, SIGTERM and SIGHUP end a command in order, however often they come."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil
import pytest

from tests import PROJECT

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
COMMAND = """
import subprocess, sys, time
from pathlib import Path
from cluster.core import ending
from cluster.run_state.lock_file import LockFile
from cluster.runtime.signals import answer_signals
forced_after_s, clean_up_s, lock = float(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
answer_signals(forced_after_s)
child = subprocess.Popen(["sleep", "600"])
lock = LockFile.take(lock)
try:
    print("ready", child.pid, flush=True)
    time.sleep(60)
finally:
    for part in range(4):
        time.sleep(clean_up_s / 4)
        print("cleaned", part, flush=True)
    print("hurried", ending.is_hurried(), flush=True)
    child.kill()
    lock.release()
"""


def run(*arguments: object, prefix: Sequence[str] = ()) -> tuple[subprocess.Popen[str], psutil.Process]:
    """Start the command. Return it with its child."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", COMMAND, *map(str, arguments)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    word, child = process.stdout.readline().split()
    assert word == "ready"
    return process, psutil.Process(int(child))


def finish(process: subprocess.Popen[str], child: psutil.Process) -> str:
    output, errors = process.communicate(timeout=60)
    assert "Terminated" in errors or "KeyboardInterrupt" in errors or process.returncode > 128, errors
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    return output


@pytest.mark.parametrize("number", SIGNALS)
def test_one_signal_ends_a_command_in_order(tmp_path, number: signal.Signals) -> None:
    process, child = run(60, 0.4, tmp_path / "lock")
    process.send_signal(number)
    assert finish(process, child).splitlines() == [*(f"cleaned {part}" for part in range(4)), "hurried False"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", range(4))
def test_further_signals_hurry_the_clean_up_and_do_not_skip_it(tmp_path, seed: int) -> None:
    draw = random.Random(seed)
    process, child = run(60, 0.8, tmp_path / "lock")
    for _ in range(draw.randint(2, 6)):
        process.send_signal(draw.choice(SIGNALS))
        time.sleep(draw.uniform(0.0, 0.15))
    assert finish(process, child).splitlines() == [*(f"cleaned {part}" for part in range(4)), "hurried True"]
    assert list(tmp_path.iterdir()) == []


def test_a_clean_up_that_hangs_is_ended_by_force_after_a_second_signal(tmp_path) -> None:
    """Even then, no child process and no lock stays."""
    process, child = run(0.5, 240, tmp_path / "lock")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    assert finish(process, child) == ""
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_a_command_under_nohup_survives_its_terminal(tmp_path) -> None:
    process, child = run(60, 0.1, tmp_path / "lock", prefix=["nohup"])
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert "hurried False" in finish(process, child)


ENDED = """
import sys, time, weakref
import typer
from cluster.commands.exits import ExplainedGroup
from cluster.runtime.signals import answer_signals

class Cleaned:
    pass

def clean():
    print("ready", flush=True)
    time.sleep(1)
    print("cleaned", flush=True)

kept = Cleaned()
weakref.finalize(kept, clean)
app = typer.Typer(cls=ExplainedGroup)

@app.callback()
def options():
    pass

@app.command()
def command():
    answer_signals()

app(["command"])
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_command_does_not_interrupt_the_exit(number: signal.Signals) -> None:
    """Finalizers, which remove temporary directories, run when the interpreter ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDED], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (output, errors, process.returncode) == ("cleaned\n", "", 0)
