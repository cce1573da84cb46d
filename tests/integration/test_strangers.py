"""Without a cluster, no server of Ray listens on an address that another machine reaches. Ray's token keeps out the
other users of this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from cluster.runtime.auth import MODE_VARIABLE, TOKEN_VARIABLES
from tests.integration.listeners import listeners, reachable_listeners

pytestmark = pytest.mark.usefixtures("local_ray")

STRANGER = """
import sys, ray
from cluster.runtime.connect import loopback_kept
with loopback_kept():
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


class Idle:
    def here(self) -> str:
        return ray.util.get_node_ip_address()


def test_no_process_of_a_local_ray_listens_on_an_address_that_others_reach() -> None:
    idle = ray.remote(Idle).options(num_cpus=0.1).remote()
    address = ray.get(idle.here.remote())
    names = {name for name, _ in listeners()}
    assert names >= {"gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::Idle"}
    assert reachable_listeners() == []
    assert address == "127.0.0.1"  # which the learner's store and the channels of engines use


@pytest.mark.slow
def test_only_a_process_with_the_token_runs_code_on_a_local_ray(tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    owner = run_code_on(address, {MODE_VARIABLE: "token"})
    assert "it ran" in owner.stdout, owner.stderr
    for stranger in ({"HOME": str(tmp_path)}, {MODE_VARIABLE: "token", "RAY_AUTH_TOKEN": "guessed" * 5}):
        refused = run_code_on(address, stranger)
        assert refused.returncode != 0
        assert "it ran" not in refused.stdout
        assert "token" in refused.stderr
