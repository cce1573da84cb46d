"""Isolate the tests of configurations from the machine on which they run."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a machine with four CPUs and no GPU, no cluster and no hub."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
