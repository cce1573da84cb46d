"""The transport `ipc`, engines' side: the processes of an engine map memory of the learner rank on their own device.

The coordinator is that of `broadcast`: the engines that serve the version before take the next one together, and all
other workers pull.
"""

from __future__ import annotations

from cluster.core.shared_channel import MemberChannel
from cluster.core.weight_channel import ChannelSpec
from rollout.weights.broadcast import BroadcastReceiver, Channel, ChannelSource


class IpcReceiver(BroadcastReceiver):
    """A `WeightReceiver`: a member's engine maps the learner's memory itself; a worker without a route pulls."""

    source = "rollout.weights.ipc:SharedSource"


class SharedSource(ChannelSource):
    """A `WeightSource`: the end of a channel in shared memory in one process of an engine."""

    def _connect(self, spec: ChannelSpec, rank: int) -> Channel:
        return MemberChannel(spec, rank, self._device)
