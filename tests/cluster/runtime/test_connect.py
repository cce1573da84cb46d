"""Connecting to Ray. The tests that need a cluster are in tests/integration."""

from __future__ import annotations

import json
from typing import Any

import pytest
import ray

from cluster.core.addresses import AddressError
from cluster.core.config import ClusterConfig
from cluster.runtime.connect import connect


@pytest.mark.parametrize(
    ("configured", "variable", "joined"),
    [(None, None, "local"), ("auto", None, "auto"), (None, "h:1", "h:1"), ("g:2", "h:1", "g:2")],
)
def test_only_a_named_cluster_is_connected_to(
    monkeypatch: pytest.MonkeyPatch, configured: str | None, variable: str | None, joined: str
) -> None:
    """By default `ray.init` would connect to any cluster that runs on this machine."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr("cluster.runtime.connect.probe", lambda address: None)
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    connect(ClusterConfig(address=configured))
    assert asked["address"] == joined


@pytest.mark.parametrize(("runtime_env", "travels"), [({"working_dir": "gcs://x.zip"}, False), ({}, True)])
def test_a_job_connects_to_its_own_cluster_and_sends_the_missing_code(
    monkeypatch: pytest.MonkeyPatch, runtime_env: dict[str, str], travels: bool
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("cluster.runtime.connect.probe", lambda address: None)
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options))
    job = {"metadata": {"job_submission_id": "demo"}, "runtime_env": runtime_env}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    monkeypatch.setenv("RAY_ADDRESS", "own:6379")
    connect(ClusterConfig(address="http://other:8265"))
    assert asked["address"] == "own:6379"
    assert ("py_modules" in asked["runtime_env"]) is travels


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (
            RuntimeError(
                "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.10.1\n"
                "This process on 1.2.3.4 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
            ),
            r"runs Ray 2\.9\.0 and Python 3\.10\.1, and this environment has Ray 2\.60\.0 .*requirements/",
        ),
        (ray.exceptions.AuthenticationError("Unauthenticated"), r"requires a token: run RAY_AUTH_MODE=token"),
    ],
)
def test_a_refusal_by_the_cluster_is_one_line(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, said: str
) -> None:
    def refuse(**_: Any) -> None:
        raise failure

    monkeypatch.setattr("cluster.runtime.connect.probe", lambda address: None)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ConnectionError, match=said) as error:
        connect(ClusterConfig(address="head:6379"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "no Ray cluster listens at 127.0.0.1:1"),
        ("http://head:8265", "is a job server: launch.py submit sends a run to it"),
    ],
)
def test_an_address_without_a_cluster_fails_at_once(address: str, said: str) -> None:
    with pytest.raises((ConnectionError, AddressError), match=said):
        connect(ClusterConfig(address=address))


def test_a_timeout_of_the_start_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConnectionError, match="the machine is busy"):
        connect(ClusterConfig())
