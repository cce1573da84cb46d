"""The end of a terminal, with all real parts."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cluster.configuration.loading import load_config
from tests import PROJECT
from tests.integration.runs import interrupt, rows_of, wait_for_step
from tests.waiting import until

pytestmark = pytest.mark.timeout(1200)


@pytest.mark.slow
def test_a_comparison_that_is_hung_up_leaves_no_training(write_config: Callable[..., Path]) -> None:
    """The same command then resumes it. A run whose directory is deleted meanwhile ends with one line."""
    base = write_config(name="base", steps=40, evaluation={"every_steps": 20}, checkpoint={"every_steps": 1})
    file = base.with_name("comparison.yaml")
    values = {
        "name": "pair",
        "directory": str(base.parent / "runs"),
        "base": base.name,
        "seeds": [0],
        "variants": {"a": ["objective.name=grpo"], "b": ["objective.name=hpo"]},
    }
    file.write_text(yaml.safe_dump(values))
    config = load_config(base, ["name=pair.a.seed0", f"directory={base.parent / 'runs' / 'pair'}"]).config

    def compare() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "launch.py", "compare", str(file)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    process = compare()
    wait_for_step(config, 2, process)
    output = interrupt(process, signal.SIGHUP)
    assert process.returncode == 143
    assert "received SIGHUP; the same command resumes the comparison" in output
    reached = rows_of(config)[-1]["step"]
    assert not list(base.parent.rglob("*.lock"))

    process = compare()
    wait_for_step(config, reached + 1, process)
    gone = config.run_directory.with_name("gone")
    config.run_directory.rename(gone)  # at once: a run that still writes changes what a deletion has listed
    shutil.rmtree(gone, ignore_errors=True)
    log = config.run_directory.parent / "logs" / "pair.a.seed0.log"
    until(
        lambda: "was deleted, moved or replaced while the run was writing it" in log.read_text(),
        "its end",
        60,
    )
    interrupt(process, signal.SIGINT)
    assert "Traceback" not in log.read_text()
