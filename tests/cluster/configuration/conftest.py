"""Isolate the tests of configurations from the machine on which they run."""

from __future__ import annotations

import os

import pytest

from cluster.configuration import resource_checks


@pytest.fixture(autouse=True)
def _this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a machine with four CPUs and no GPU, no cluster and no hub, and packages for any platform."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(resource_checks, "installed_platform", lambda: None)
    monkeypatch.setattr(resource_checks, "read_devices", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
