"""The transport `pull`, engines' side: each worker fetches a version from Ray's object store when it is ready to.

One file per version and node holds the weights in shared memory, and every engine process of the node maps it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from cluster.core.deadlines import within
from cluster.core.types import PolicyVersion, WeightLayout
from cluster.core.weight_transport import CoordinatorContext, EngineRoute, UpdateTarget, WeightUpdater
from rollout.weights.node_files import NodeWeightFiles

if TYPE_CHECKING:
    import torch


class PullCoordinator:
    """A `WeightCoordinator`: no process waits for another one, since published versions are in the object store."""

    def __init__(self, context: CoordinatorContext) -> None:
        self._timeout_s = context.update_timeout_s

    async def hand_out(self, version: PolicyVersion, serving: Sequence[str], late: bool) -> None:
        """Do nothing: workers fetch the version themselves."""

    async def bring(self, target: UpdateTarget, version: PolicyVersion) -> float:
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
            yield EngineRoute("rollout.weights.pull:FileSource", (str(path),))

    def close(self) -> None:
        self._files.close()


class FileSource:
    """A `WeightSource`: a safetensors file, whose pages all processes of a node share."""

    failures: tuple[type[Exception], ...] = ()

    def __init__(self, device: torch.device, rank: int) -> None:
        pass

    def tensors(
        self, arguments: Sequence[Any], layout: Sequence[WeightLayout]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        from safetensors.torch import load_file

        (path,) = arguments
        return iter(load_file(path).items())

    def close(self) -> None:
        """Do nothing: the worker owns the file."""
