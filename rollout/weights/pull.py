"""The transport `pull`, engines' side: each worker fetches a version from Ray's object store when it is ready to.

One file per version and node holds the weights in shared memory, and every engine process of the node maps it.
"""

from __future__ import annotations

import asyncio
import json
import mmap
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.core.deadlines import within
from cluster.core.files import lock
from cluster.core.types import SAFETENSORS_TYPES, LogprobGap, PolicyVersion, WeightLayout
from cluster.core.weight_transport import CoordinatorContext, EngineRoute, UpdateTarget, WeightUpdater
from rollout.weights.node_files import NodeWeightFiles
from rollout.weights.pinned_staging import PinnedStaging

if TYPE_CHECKING:
    import torch


class OverwrittenError(RuntimeError):
    """The file of a version contains another one. Locks prevent this; the error shows that they did not work."""


class PullCoordinator:
    """A `WeightCoordinator`: no process waits for another one, since published versions are in the object store."""

    def __init__(self, context: CoordinatorContext) -> None:
        self._timeout_s = context.update_timeout_s

    async def hand_out(self, version: PolicyVersion, serving: Sequence[str], late: bool) -> None:
        """Do nothing: workers fetch the version themselves."""

    async def bring(self, target: UpdateTarget, version: PolicyVersion) -> LogprobGap:
        return await within(
            self._timeout_s,
            target.worker.call(WeightUpdater.update_weights, version),
            f"{target.name} to pull weight version {version.version} (rollout.update_timeout_s)",
        )

    def expects(self, process: str, version: PolicyVersion) -> bool:
        return False


class PullReceiver:
    """A `WeightReceiver`: writes the version into shared memory, unless another worker of this node has done so."""

    def __init__(self, run_id: str) -> None:
        self._files = NodeWeightFiles(run_id)

    @asynccontextmanager
    async def arriving(self, version: PolicyVersion, route: Any = None) -> AsyncIterator[EngineRoute]:
        # From another node the parts come through Ray's object store, once for all workers of this node.
        parts = await version.weights
        with ExitStack() as stack:
            held = self._files.held(version.version, parts)
            # In a thread: copying takes a while, and responses end in the meantime.
            path = await asyncio.to_thread(stack.enter_context, held)
            yield EngineRoute("rollout.weights.pull:FileSource", (str(path), version.version))

    def close(self) -> None:
        self._files.close()


class FileSource:
    """A `WeightSource`: a safetensors file, whose pages all processes of a node share.

    A mapped file is locked for as long as a tensor of it exists, because its writer would otherwise use it again.
    """

    failures: tuple[type[Exception], ...] = (OSError, OverwrittenError)

    def __init__(self, device: torch.device, rank: int) -> None:
        self._device = device
        self._staging: PinnedStaging | None = None

    def tensors(
        self, arguments: Sequence[Any], layout: Sequence[WeightLayout]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        path, version = arguments
        content = _mapped(Path(path))
        for name, tensor in _tensors(content, version):
            yield name, self._on_device(tensor)
        _header(content, version)

    def close(self) -> None:
        """Do nothing: the worker owns the file."""

    def _on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor on a GPU; on CPU, without a copy."""
        if self._device.type == "cpu":
            return tensor
        if self._staging is None:
            self._staging = PinnedStaging(self._device)
        return self._staging.to_device(tensor)


def _mapped(path: Path) -> np.ndarray:
    """Return the bytes of a file, uint8 [bytes]. Its shared lock is held until the array and all its views are gone."""
    with open(path, "rb") as file:
        lock(file, shared=True)
        # The mapping has a copy of the descriptor, and with it the lock.
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=np.uint8)


def _header(content: np.ndarray, version: int) -> dict[str, Any]:
    """Return the header of a safetensors file: its metadata and the place of each tensor.

    Raises:
        OverwrittenError: if the file does not contain `version` (any more).
    """
    length = int.from_bytes(content[:8].tobytes(), "little")
    try:
        header: dict[str, Any] = json.loads(content[8 : 8 + length].tobytes())
    except ValueError:  # it is being written
        header = {}
    found = header.get("__metadata__", {}).get("version")
    if found != str(version):
        raise OverwrittenError(f"the file of weight version {version} contains version {found}")
    return header


def _tensors(content: np.ndarray, version: int) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    header = _header(content, version)
    data = 8 + int.from_bytes(content[:8].tobytes(), "little")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (data + offset for offset in entry["data_offsets"])
        dtype = getattr(torch, SAFETENSORS_TYPES[entry["dtype"]])
        yield name, torch.from_numpy(content[begin:end]).view(dtype).view(entry["shape"])
