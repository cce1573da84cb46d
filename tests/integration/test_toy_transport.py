"""A new weight transport is one class per process and one row: here through a file on a shared disk."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from cluster.core.actor import Actor
from cluster.core.types import PolicyVersion, WeightLayout
from cluster.core.weight_transport import WEIGHT_TRANSPORTS, EngineRoute, WeightTransport
from tests.integration.engines import Engines, actor
from tests.integration.publishing import check_whole_weights


class DiskSender:
    def __init__(self, device: torch.device) -> None:
        self._file = Path(f"/tmp/toy-transport-{os.getpid()}.safetensors")

    def publish(self, version: PolicyVersion, tensors: Mapping[str, torch.Tensor]) -> PolicyVersion:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, self._file)
        return replace(version, weights=str(self._file))


class DiskReceiver:
    def __init__(self, run_id: str) -> None:
        pass

    @asynccontextmanager
    async def arriving(self, version: PolicyVersion, route: Any) -> AsyncIterator[EngineRoute]:
        yield EngineRoute(f"{__name__}:DiskSource", (version.weights,))
        os.unlink(version.weights)  # in this test there is only one worker

    def close(self) -> None:
        pass


class DiskSource:
    failures = (OSError,)

    def __init__(self, device: torch.device, rank: int) -> None:
        pass

    def tensors(
        self, arguments: Sequence[Any], layout: Sequence[WeightLayout]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        yield from load_file(*arguments).items()

    def close(self) -> None:
        pass


ROW = WeightTransport(
    sender=f"{__name__}:DiskSender",
    receiver=f"{__name__}:DiskReceiver",
    coordinator="rollout.weights.pull:PullCoordinator",
)


@pytest.mark.slow  # the transports that are shipped are tested each time
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("local_ray")
async def test_a_row_in_the_table_adds_a_transport(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHT_TRANSPORTS, "disk", ROW)
    worker: Actor[Engines] = Actor(actor(Engines).remote())
    await check_whole_weights(WEIGHT_TRANSPORTS["disk"], worker, tmp_path, tied=True, dtype="float32")
    ray.kill(worker.handle)
