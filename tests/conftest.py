"""Set up the environment of all tests."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import yaml


def pytest_configure() -> None:
    """Restore the default handlers of SIGINT and SIGHUP, so that tests of signals work wherever pytest runs. The
    background jobs of a shell ignore SIGINT, and `nohup` lets its command ignore SIGHUP, with all their processes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """Write a valid configuration that fits on any machine."""
    file = tmp_path / "sound.yaml"
    values = {
        "name": "sound",
        "directory": str(tmp_path / "runs"),
        "model": {"max_context_tokens": 128},
        "rollout": {"workers": 1, "prompts_per_step": 4, "max_response_tokens": 64, "cpus_per_worker": 0.3},
        "learner": {"cpus_per_rank": 0.3},
        "reward": {"cpus_per_worker": 0.3},
    }
    file.write_text(yaml.safe_dump(values))
    return file
