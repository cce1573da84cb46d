"""The transport `broadcast`, engines' side: the learner sends a version to all engines at once, memory to memory.

The members of a broadcast are the processes that serve the version before. A worker that is new, late or lost its
channel pulls the version; only for such workers is it put into the object store.

A broadcast waits for all of its members. So it never begins with a worker that is not up, and a member that fails costs
the others time and nothing else: they pull, and the next broadcast is among the workers that are there then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import ray

from cluster.core.deadlines import within
from cluster.core.types import LogprobGap, PolicyVersion, WeightLayout
from cluster.core.weight_buckets import BucketMemory, receive_in_buckets
from cluster.core.weight_channel import FAILURES, ChannelSpec, OfferRequest, WeightChannel
from cluster.core.weight_transport import (
    CoordinatorContext,
    EngineRoute,
    SupersededError,
    UpdateTarget,
    WeightUpdater,
)
from rollout.weights.pull import PullCoordinator, PullReceiver

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

BROADCAST_TIMEOUT_S = 60.0
"""The longest wait for the members of a broadcast, and then for each bucket. After it the members pull."""


class BroadcastRoute(NamedTuple):
    """The route of a member: the channel, and the rank in it of the engine's first process."""

    spec: ChannelSpec
    first_rank: int


class BroadcastCoordinator:
    """A `WeightCoordinator`. Published versions stay with the learner until they are sent or offered."""

    def __init__(self, context: CoordinatorContext) -> None:
        self._context = context
        self._pull = PullCoordinator(context)
        self._members: tuple[str, ...] = ()
        """The processes in the channel, by rank. Empty if there is no channel, or if it broke."""
        self._spec: ChannelSpec | None = None
        """The spec of the channel that was made last."""
        self._broadcast_version: int | None = None
        """The version that was last sent, or is being sent, to the members."""
        self._missing: dict[str, int] = {}
        """The first ranks of the members that have not been asked yet to take it."""
        self._offers: dict[int, asyncio.Task[PolicyVersion | None]] = {}
        """The offer of the version that was last asked for in the object store."""

    async def hand_out(self, version: PolicyVersion, serving: Sequence[str], late: bool) -> None:
        broken = False
        if serving and (failure := await self._broadcast(version.version, tuple(serving))):
            broken = True
            self._context.on_event(
                f"weight version {version.version} could not be broadcast to {', '.join(serving)} ({failure}); "
                "they pull it"
            )
        if late or broken:
            await self._offered(version)

    async def bring(self, target: UpdateTarget, version: PolicyVersion) -> LogprobGap:
        if self.expects(target.process, version):
            assert self._spec is not None, "members are expected only in a channel"
            route = BroadcastRoute(self._spec, self._missing.pop(target.process))
            try:
                gap = await within(
                    self._context.update_timeout_s,
                    target.worker.call(WeightUpdater.update_weights, version, route),
                    f"{target.name} to take weight version {version.version} (rollout.update_timeout_s)",
                )
            except ray.exceptions.RayTaskError as failure:  # the worker lives, but the channel broke
                self._members = ()
                logger.warning(
                    "%s did not get weight version %d: %s", target.name, version.version, failure.cause
                )
            else:
                return gap
        offered = await self._offered(version)
        if offered is None:
            raise SupersededError(f"weight version {version.version} is no longer with the learner")
        return await self._pull.bring(target, offered)

    def expects(self, process: str, version: PolicyVersion) -> bool:
        return version.version == self._broadcast_version and process in self._missing

    async def _broadcast(self, version: int, members: tuple[str, ...]) -> str:
        """Return a description of the failure, or an empty string after a success."""
        learner, processes = self._context.learner, self._context.processes_per_engine
        assert learner is not None, "only a learner publishes versions"
        if self._spec is None or self._members != members:
            number = 1 if self._spec is None else self._spec.number + 1
            size = 1 + len(members) * processes
            names = ("learner", *(member for member in members for _ in range(processes)))
            self._spec = ChannelSpec(*learner.meeting_point, number, size, BROADCAST_TIMEOUT_S, names)
            self._members = members
        self._broadcast_version = version
        self._missing = {process: 1 + index * processes for index, process in enumerate(members)}
        failure: str | None = await learner.send(version, self._spec)
        assert failure is not None, "the learner waits while its version is handed out"
        self._missing.clear()
        if failure:
            self._members = ()
        return failure

    async def _offered(self, version: PolicyVersion) -> PolicyVersion | None:
        """Return `version` with its weights in the object store, or None if it is too late for that."""
        learner = self._context.learner
        assert learner is not None, "only a learner publishes versions"
        if version.version not in self._offers:
            # A task of the run: a learner that fails is not the failure of a worker.
            offer = self._context.background.create_task(
                learner.send(version.version, OfferRequest(), during_step=True)
            )
            self._offers = {version.version: offer}
        return await asyncio.shield(self._offers[version.version])


class BroadcastReceiver:
    """A `WeightReceiver`: a member's engine receives the tensors itself; a worker without a route pulls."""

    source = "rollout.weights.broadcast:ChannelSource"

    def __init__(self, run_id: str) -> None:
        self._pull = PullReceiver(run_id)

    @asynccontextmanager
    async def arriving(
        self, version: PolicyVersion, route: BroadcastRoute | None
    ) -> AsyncIterator[EngineRoute]:
        if route is None:
            async with self._pull.arriving(version) as engine_route:
                yield engine_route
            return
        yield EngineRoute(self.source, (*astuple(route.spec), route.first_rank))
        logger.info("took weight version %d over channel %d", version.version, route.spec.number)

    def close(self) -> None:
        self._pull.close()


class Channel(Protocol):
    """The end of a channel in an engine's process."""

    spec: ChannelSpec

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Fill a contiguous tensor with the one that the learner sends."""

    def close(self) -> None: ...


class ChannelSource:
    """A `WeightSource`: the end of a channel in one process of an engine. It lasts over many versions."""

    failures: tuple[type[Exception], ...] = FAILURES

    def __init__(self, device: torch.device, rank: int) -> None:
        self._device = device
        self._buckets = BucketMemory(device)
        self._rank = rank
        """The rank of this process in its engine."""
        self._channel: Channel | None = None

    def tensors(
        self, arguments: Sequence[Any], layout: Sequence[WeightLayout]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        address, port, number, size, timeout_s, names, first_rank = arguments
        spec = ChannelSpec(address, port, number, size, timeout_s, tuple(names))
        channel = self._joined(spec, first_rank + self._rank)
        return receive_in_buckets(channel.broadcast, layout, self._buckets)

    def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _connect(self, spec: ChannelSpec, rank: int) -> Channel:
        return WeightChannel(spec, rank, self._device)

    def _joined(self, spec: ChannelSpec, rank: int) -> Channel:
        """Return the channel of `spec`. A channel of other members is useless."""
        if self._channel is None or self._channel.spec != spec:
            self.close()
            self._channel = self._connect(spec, rank)
        return self._channel
