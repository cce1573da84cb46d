"""Ray listens on all addresses of a machine, even for a run that uses one machine. Its token keeps others out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from cluster.runtime.auth import MODE_VARIABLE, TOKEN_VARIABLES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

STRANGER = """
import sys, ray
ray.init(sys.argv[1], log_to_driver=False)
print(ray.get(ray.remote(lambda: "it ran").remote()))
"""


def run_code_on(address: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    clean = {
        name: value for name, value in os.environ.items() if name not in (MODE_VARIABLE, *TOKEN_VARIABLES)
    }
    return subprocess.run(
        [sys.executable, "-c", STRANGER, address],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_only_a_process_with_the_token_runs_code_on_a_local_ray(tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    owner = run_code_on(address, {MODE_VARIABLE: "token"})
    assert "it ran" in owner.stdout, owner.stderr
    for stranger in ({"HOME": str(tmp_path)}, {MODE_VARIABLE: "token", "RAY_AUTH_TOKEN": "guessed" * 5}):
        refused = run_code_on(address, stranger)
        assert refused.returncode != 0
        assert "it ran" not in refused.stdout
        assert "token" in refused.stderr
