"""A run with all real parts that is interrupted, and resumed by the same command."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.configuration.loading import load_config
from cluster.run_state.run_directory import RunDirectory
from tests import PROJECT
from tests.integration.runs import (
    assert_every_prompt_trained_once,
    finish,
    interrupt,
    rows_of,
    start,
    wait_for_step,
)

pytestmark = pytest.mark.timeout(1200)


def test_an_interrupted_run_is_resumed_by_the_same_command(write_config: Callable[..., Path]) -> None:
    """Ctrl-C ends a run cleanly, also if it is pressed twice. The resumed run continues from the checkpoint and
    accounts for every prompt, although its console is lost after three lines.

    This also holds with dynamic sampling. A second command beside the live run is refused, and costs it nothing.
    """
    config_file = write_config(
        name="resumed",
        steps=12,
        rollout={"dynamic_sampling_limit": 50, "workers": 1},
        checkpoint={"every_steps": 3},
        evaluation={"every_steps": 6},
    )
    config = load_config(config_file).config
    process = start(config_file)
    wait_for_step(config, 2, process)
    process.send_signal(signal.SIGSTOP)  # otherwise the run might be finished before the others are started
    for second in [start(config_file, option) for option in ("--resume", "--fresh")]:
        output, _ = second.communicate(timeout=120)
        assert second.returncode == 2, output
        assert f"is in use by `launch.py train {config_file}` (process {process.pid} on" in output
        assert len(output.splitlines()) == 1, output
    process.send_signal(signal.SIGCONT)
    wait_for_step(config, 4, process)
    assert [row["step"] for row in rows_of(config)][:5] == list(range(5)), (
        "the record of the live run is whole"
    )
    interrupt(process, signal.SIGINT, signal.SIGINT)
    assert process.returncode == 130

    directory = RunDirectory(config.run_directory)
    command = f"set -o pipefail; {sys.executable} launch.py train {config_file} --resume | head -3"
    piped = subprocess.run(["bash", "-c", command], cwd=PROJECT, capture_output=True, text=True, timeout=600)
    assert piped.returncode == 0, piped.stdout + piped.stderr
    assert len(piped.stdout.splitlines()) == 3
    rest = directory.console_log.read_text()
    assert "the console was lost (Broken pipe)" in rest
    assert "resuming at step" in piped.stdout + rest
    assert rest.splitlines()[-1].startswith("final_model"), "nothing is printed after the summary"
    rows = rows_of(config)
    assert [row["step"] for row in rows] == list(range(13))
    assert_every_prompt_trained_once(rows, config)
    assert rows[-1]["progress/prompts_dropped"] > 0
    assert all(row["reward/zero_variance_fraction"] == 0 for row in rows[1:])
    assert "finished" in finish(start(config_file), config)
