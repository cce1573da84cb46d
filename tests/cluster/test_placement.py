"""Connecting to Ray. What needs a cluster is in tests/integration."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from cluster.config import ClusterConfig
from cluster.placement import connect


@pytest.mark.parametrize(
    ("configured", "variable", "joined"),
    [(None, None, "local"), ("auto", None, "auto"), (None, "h:1", "h:1"), ("g:2", "h:1", "g:2")],
)
def test_a_cluster_is_joined_only_if_it_was_named(
    monkeypatch: pytest.MonkeyPatch, configured: str | None, variable: str | None, joined: str
) -> None:
    """Left to itself, `ray.init` would join whatever cluster somebody had started on this machine."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    connect(ClusterConfig(address=configured))
    assert asked["address"] == joined
