from __future__ import annotations

import pytest

from tests import PROJECT


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes that a comparison starts import the replacement of a training."""
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
