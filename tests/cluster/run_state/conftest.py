"""The fixtures of the tests of checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.run_state.checkpoints import CheckpointStore


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2)
