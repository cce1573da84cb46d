"""The transport `broadcast`, learner's side: rank 0 sends its tensors over a channel to the engines' processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cluster.core.types import PolicyVersion
from cluster.core.weight_buckets import BucketMemory, send_in_buckets
from cluster.core.weight_channel import FAILURES, ChannelSpec, OfferRequest, WeightChannel
from learner.weights.pull import PullSender


class BroadcastSender:
    """A `RequestedSender`. A published version stays in the learner's memory until it is asked for, in one of two ways:

    ChannelSpec     broadcast it to the channel's members; answers with what went wrong, "" if nothing did
    OfferRequest    put it into the object store, for workers that are in no channel; answers with the version
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buckets = BucketMemory(device)
        self._pull = PullSender(device)
        self._channel: WeightChannel | None = None
        """The channel to the engines that took the last broadcast."""

    def publish(self, version: PolicyVersion, tensors: Mapping[str, Tensor]) -> PolicyVersion:
        return version

    def send(
        self, request: ChannelSpec | OfferRequest, version: PolicyVersion, tensors: Mapping[str, Tensor]
    ) -> str | PolicyVersion:
        if isinstance(request, OfferRequest):
            return self._pull.publish(version, tensors)
        try:
            self._transfer(request, version, tensors)
        except FAILURES as failure:
            text = " ".join(str(failure).split()) or type(failure).__name__
            self._leave_channel(text)
            return text
        return ""

    def _transfer(self, spec: ChannelSpec, version: PolicyVersion, tensors: Mapping[str, Tensor]) -> None:
        """Send the tensors to the members of a channel.

        Raises:
            FAILURES: if some member has not received them.
        """
        if self._channel is None or self._channel.spec != spec:
            self._leave_channel()
            self._channel = WeightChannel(spec, 0, self._device)
        send_in_buckets(self._channel.broadcast, version.layout, tensors.items(), self._buckets)

    def _leave_channel(self, failure: str = "") -> None:
        """Close the channel. The members notice a failure by themselves, as the group's other ends."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
