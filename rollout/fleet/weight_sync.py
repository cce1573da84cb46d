"""How a published version comes to the workers.

    pull         each takes it from the object store, when it is ready to
    broadcast    the learner sends it to all that serve the version before, at once and from memory to memory; who is
                 new, or was late, or lost the link, pulls it. Only for those is it put into the object store

A broadcast waits for all its members. So none is begun with a worker that is not up, and one that fails costs its time,
and nobody anything else: the members pull, and the next broadcast is among those who are there then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import ray

from cluster.core.config import RolloutConfig
from cluster.core.deadlines import within
from cluster.core.types import PolicyVersion
from cluster.core.weight_channel import ChannelSpec
from learner.engine.group import LearnerGroup

logger = logging.getLogger(__name__)

BROADCAST_TIMEOUT_S = 60.0
"""Longest wait for the members of a broadcast, and for each tensor. Then they pull."""


class SupersededError(RuntimeError):
    """The learner does not have the weights any more. The next version comes soon."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """A worker that is up."""

    name: str
    """Of its place in the fleet, for people."""
    process: str
    """One that is started anew in the same place is another, and in no link."""
    worker: ray.actor.ActorHandle


class WeightTransport(Protocol):
    """What the fleet asks for."""

    async def hand_out(self, policy: PolicyVersion, serving: Sequence[str], others: bool) -> None:
        """Begin to carry `policy`: to the processes `serving`, which have the version before, and, if there are,
        `others`. Returns when the learner may change its weights again."""

    async def bring(self, receiver: Receiver, policy: PolicyVersion) -> float:
        """Have the worker serve `policy`. Returns its largest |Δ log p| on the probe.

        Raises:
            SupersededError: it is too late for this version.
            RayError, TimeoutError: the worker failed.
        """

    def expects(self, process: str, policy: PolicyVersion) -> bool:
        """Whether others wait until `process` takes `policy`."""


async def _pulled(receiver: Receiver, policy: PolicyVersion, timeout_s: float) -> float:
    return await within(
        timeout_s,
        receiver.worker.pull_weights.remote(policy),
        f"{receiver.name} to pull weight version {policy.version} (rollout.update_timeout_s)",
    )


class PullTransport:
    """Publications are in the object store."""

    def __init__(self, rollout: RolloutConfig) -> None:
        self._timeout_s = rollout.update_timeout_s

    async def hand_out(self, policy: PolicyVersion, serving: Sequence[str], others: bool) -> None:
        """There is nothing to do: whoever is ready takes it."""

    async def bring(self, receiver: Receiver, policy: PolicyVersion) -> float:
        return await _pulled(receiver, policy, self._timeout_s)

    def expects(self, process: str, policy: PolicyVersion) -> bool:
        return False


class BroadcastTransport:
    """Publications are with the learner (a `LearnerGroup` with `offers_weights=False`)."""

    def __init__(
        self,
        rollout: RolloutConfig,
        learner: LearnerGroup,
        on_event: Callable[[str], None],
        background: asyncio.TaskGroup,
    ) -> None:
        self._rollout = rollout
        self._learner = learner
        self._on_event = on_event
        self._background = background
        self._members: tuple[str, ...] = ()
        """Of the link, in the order of their ranks. Empty if there is none, or it broke."""
        self._spec: ChannelSpec | None = None
        """Of the link that was made last."""
        self._broadcast_version: int | None = None
        """That was last sent, or is being sent, to the members."""
        self._missing: dict[str, int] = {}
        """First ranks of the members that have not been asked to take it yet."""
        self._offers: dict[int, asyncio.Task[PolicyVersion | None]] = {}
        """Of the version that was last asked for in the object store."""

    async def hand_out(self, policy: PolicyVersion, serving: Sequence[str], others: bool) -> None:
        broken = False
        if serving:
            failure = await self._broadcast(policy.version, tuple(serving))
            if failure is not None:
                broken = True
                self._on_event(
                    f"weight version {policy.version} could not be broadcast to {', '.join(serving)} ({failure}); "
                    "they pull it"
                )
        if others or broken:
            await self._offered(policy)

    async def _broadcast(self, version: int, members: tuple[str, ...]) -> str | None:
        """What went wrong, None if nothing did."""
        processes = self._rollout.tensor_parallel_size
        if self._spec is None or self._members != members:
            number = 1 if self._spec is None else self._spec.number + 1
            size = 1 + len(members) * processes
            self._spec = ChannelSpec(*self._learner.meeting_point, number, size, BROADCAST_TIMEOUT_S)
            self._members = members
        self._broadcast_version = version
        self._missing = {process: 1 + place * processes for place, process in enumerate(members)}
        failure = await self._learner.broadcast(self._spec)
        self._missing.clear()
        if failure is not None:
            self._members = ()
        return failure

    def expects(self, process: str, policy: PolicyVersion) -> bool:
        return policy.version == self._broadcast_version and process in self._missing

    async def bring(self, receiver: Receiver, policy: PolicyVersion) -> float:
        if self.expects(receiver.process, policy):
            first_rank = self._missing.pop(receiver.process)
            try:
                return await within(
                    self._rollout.update_timeout_s,
                    receiver.worker.receive_weights.remote(policy, self._spec, first_rank),
                    f"{receiver.name} to take weight version {policy.version} (rollout.update_timeout_s)",
                )
            except ray.exceptions.RayTaskError as failure:  # it lives, and the link does not
                self._members = ()
                logger.warning(
                    "%s did not get weight version %d: %s", receiver.name, policy.version, failure.cause
                )
        offered = await self._offered(policy)
        if offered is None:
            raise SupersededError(f"weight version {policy.version} is no longer with the learner")
        return await _pulled(receiver, offered, self._rollout.update_timeout_s)

    async def _offered(self, policy: PolicyVersion) -> PolicyVersion | None:
        """`policy` with its weights in the object store; None if it is too late for that."""
        version = policy.version
        if version not in self._offers:
            # A task of the run: a learner that fails is not the failure of a worker.
            self._offers = {version: self._background.create_task(self._learner.offer(version))}
        return await asyncio.shield(self._offers[version])
