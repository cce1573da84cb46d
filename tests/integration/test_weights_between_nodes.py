"""Published weights reach workers on another node through Ray's object store. Two raylets run on this machine."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from cluster.core.actor_options import EngineOptions
from cluster.core.config import ClusterConfig
from cluster.core.types import PolicyVersion
from cluster.runtime.connect import connect
from learner.weights.pull import HostCopy, file_parts
from rollout.engine.worker import RolloutWorker

STORE_BYTES = 80 * 2**20
pytestmark = [pytest.mark.timeout(240), pytest.mark.drill]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start a head, where weights are published, and a node for workers."""
    with (
        # A process of a node that is ending may still write its log.
        tempfile.TemporaryDirectory(prefix="nodes-", dir="/tmp", ignore_cleanup_errors=True) as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", directory)
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES}
        )
        cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES, resources={"elsewhere": 2})
        connect(ClusterConfig(address=cluster.address))
        yield cluster
        ray.shutdown()
        cluster.shutdown()


class Fetcher:
    """A rollout worker without its engine."""

    def __init__(self, name: str, options: EngineOptions) -> None:
        self._worker = RolloutWorker(name, options)

    async def fetch(self, published: PolicyVersion) -> tuple[str, int, dict[str, float]]:
        """Return the node, the inode of the file, and the sum of each weight."""
        async with self._worker._receiver.arriving(published, None) as route:
            path = Path(route.arguments[0])
            sums = {name: float(weight.sum()) for name, weight in load_file(path).items()}
            return ray.get_runtime_context().get_node_id(), path.stat().st_ino, sums

    async def close(self) -> None:
        await self._worker.shut_down()


async def test_workers_of_another_node_share_one_file_and_old_versions_are_freed(cluster: Cluster) -> None:
    """20 versions of 16 MiB pass through object stores of 80 MiB, so unused versions must be freed."""
    options = EngineOptions(uuid.uuid4().hex, "none", "float32", 64, 8, 1, 0.1, 0.5, on_gpu=False)
    workers = [
        ray.remote(Fetcher).options(resources={"elsewhere": 1}, num_cpus=0).remote(f"rollout-{i}", options)
        for i in range(2)
    ]
    head = ray.get_runtime_context().get_node_id()
    for version in range(1, 21):
        weights = {"a": torch.full((2**21,), float(version)), "b": torch.full((2**21,), 2.0 * version)}
        published = PolicyVersion(version, ray.put(file_parts(weights, version, HostCopy())), (), ())
        del weights
        (node, inode, sums), other = [await worker.fetch.remote(published) for worker in workers]
        assert node != head
        assert other == (node, inode, sums)
        assert sums == {"a": version * 2.0**21, "b": version * 2.0**22}
    for worker in workers:
        await worker.close.remote()
