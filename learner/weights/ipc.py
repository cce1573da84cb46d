"""The transport `ipc`, learner's side: each rank hands its tensors to the engines' processes on its own device.

A rank copies one bucket after the other into memory that these processes have mapped (CUDA IPC on a GPU).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cluster.core.shared_channel import BUFFERS, ServingChannel
from cluster.core.shared_memory import SharedMemory, allocate
from cluster.core.types import PolicyVersion, WeightLayout
from cluster.core.weight_buckets import BUCKET_BYTES, plan_buckets, send_in_buckets
from cluster.core.weight_channel import ChannelSpec, OfferRequest
from learner.weights.broadcast import BroadcastSender


class IpcSender(BroadcastSender):
    """A `RequestedSender` that works in every rank. Rank 0 alone offers a version to workers in no channel.

    Without `rank` and `ranks`, those of torch's process group are taken.
    """

    def __init__(self, device: torch.device, rank: int | None = None, ranks: int | None = None) -> None:
        super().__init__(device)
        self._rank = torch.distributed.get_rank() if rank is None else rank
        self._ranks = torch.distributed.get_world_size() if ranks is None else ranks
        self._serving: ServingChannel | None = None
        """The channel to the engines that took the last version."""
        self._memory: SharedMemory | None = None
        """The buffers. All channels use the same memory, because a process that hangs may still have mapped it."""

    def send(
        self, request: ChannelSpec | OfferRequest, version: PolicyVersion, tensors: Mapping[str, Tensor]
    ) -> str | PolicyVersion:
        if isinstance(request, OfferRequest) and self._rank != 0:
            return ""
        return super().send(request, version, tensors)

    def _transfer(self, spec: ChannelSpec, version: PolicyVersion, tensors: Mapping[str, Tensor]) -> None:
        channel = self._joined(spec, version)
        send_in_buckets(channel.broadcast, version.layout, tensors.items(), self._buckets)
        channel.finish()

    def _joined(self, spec: ChannelSpec, version: PolicyVersion) -> ServingChannel:
        """Return the channel of `spec`."""

        def memory() -> SharedMemory:
            if self._memory is None:
                self._memory = allocate(BUFFERS * buffer_bytes(version.layout), self._device)
            return self._memory

        if self._serving is None or self._serving.spec != spec:
            self._leave_channel()
            self._serving = ServingChannel(spec, self._rank, self._ranks, self._device, memory)
        return self._serving

    def _leave_channel(self, failure: str = "") -> None:
        channel, self._serving = self._serving, None
        if channel is not None:
            channel.close(failure)


def buffer_bytes(layout: tuple[WeightLayout, ...]) -> int:
    """Return the size of a buffer for versions of this layout: a bucket, or less if all buckets are smaller."""
    largest = max((bucket.size for bucket in plan_buckets(layout)), default=0)
    return max(1, min(BUCKET_BYTES, largest))
