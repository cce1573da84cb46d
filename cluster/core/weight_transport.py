"""Weight transports: the ways in which weights travel from the learner to the engines. Torch-free, Ray-free.

A transport is a row of `WEIGHT_TRANSPORTS` and one file in each of two folders:

    learner/weights/NAME.py   the sender, in every learner rank: makes a version available
    rollout/weights/NAME.py   the coordinator, in the controller: decides which worker gets a version, and when
                              the receiver, in every rollout worker: brings a version to the engine's node
                              the source, in every process of an engine: yields the tensors to load

    sender.publish(version, tensors) ─▶ coordinator.hand_out(version) ─▶ coordinator.bring(target, version)
                                                                              │ worker.update_weights(version, route)
                                                                              ▼
                                         engine: source.tensors(…) ◀─ receiver.arriving(version, route)

The parts of a row are import paths, because they run in processes of different rooms: nothing here imports them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from cluster.core.actor import Actor
from cluster.core.types import LogprobGap, PolicyVersion, WeightLayout

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class WeightTransport:
    """One row: the parts of a transport, each as `module:Class`."""

    sender: str
    """A `WeightSender`."""
    receiver: str
    """A `WeightReceiver`."""
    coordinator: str
    """A `WeightCoordinator`."""
    joins_processes: bool = False
    """True if learner and engines form one process group. Then all of them must compute on the same kind of device,
    each on one of its own."""
    shares_devices: bool = False
    """True if engines map the learner's memory. Then every process of an engine must be on the device of a rank."""
    in_every_rank: bool = False
    """True if the sender handles requests in every rank, and not in rank 0 only (see `RequestedSender`)."""

    @property
    def keeps_versions(self) -> bool:
        """True if a version stays with the learner, and only late workers pull it from the object store."""
        return self.joins_processes or self.shares_devices


WEIGHT_TRANSPORTS: dict[str, WeightTransport] = {
    "pull": WeightTransport(
        sender="learner.weights.pull:PullSender",
        receiver="rollout.weights.pull:PullReceiver",
        coordinator="rollout.weights.pull:PullCoordinator",
    ),
    "broadcast": WeightTransport(
        sender="learner.weights.broadcast:BroadcastSender",
        receiver="rollout.weights.broadcast:BroadcastReceiver",
        coordinator="rollout.weights.broadcast:BroadcastCoordinator",
        joins_processes=True,
    ),
    "ipc": WeightTransport(
        sender="learner.weights.ipc:IpcSender",
        receiver="rollout.weights.ipc:IpcReceiver",
        coordinator="rollout.weights.broadcast:BroadcastCoordinator",
        shares_devices=True,
        in_every_rank=True,
    ),
}
"""By the name that `rollout.weight_transport` gives."""


def transport_part(path: str) -> Any:
    """Return the class that a row names as `module:Class`."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


class WeightSender(Protocol):
    """The learner's side: one object in every rank. `publish` is called only in rank 0.

    `tensors` is in the order of the version's layout. Under ZeRO 3 the ranks gather a bucket of tensors when the first
    of them is read, and free it when another bucket is needed. So its methods run inside a collective of all ranks, and
    should read the tensors once, in order, and not keep them.
    """

    def __init__(self, device: torch.device) -> None: ...

    def publish(self, version: PolicyVersion, tensors: Mapping[str, torch.Tensor]) -> PolicyVersion:
        """Make `tensors` available as `version`. Return the version as workers are to be given it."""


@runtime_checkable
class RequestedSender(WeightSender, Protocol):
    """A `WeightSender` that also handles requests of its coordinator (`PolicyPublisher.send`)."""

    def send(self, request: Any, version: PolicyVersion, tensors: Mapping[str, torch.Tensor]) -> Any:
        """Do what the coordinator asks for with the version that was published last, and answer it.

        It is called in rank 0, or in all ranks at once if the transport's row says so (`in_every_rank`). Then it reads
        `tensors` in their order, or a part of them: what one rank leaves out is gathered nevertheless, so that no other
        rank waits for it. The ranks other than 0 answer with what went wrong there, "" if nothing did; such a failure
        becomes the answer to the coordinator.
        """


class PolicyPublisher(Protocol):
    """The learner, as a coordinator sees it."""

    @property
    def meeting_point(self) -> tuple[str, int]:
        """The address and port of a store in which processes find rank 0."""

    async def send(self, version: int, request: Any, *, during_step: bool = False) -> Any:
        """Have the sender, a `RequestedSender`, handle `request` with the weights of `version`.

        Return its answer, or None if the learner has trained since and does not have these weights any more.
        `during_step` tells whether the learner may be in the middle of a step, which then delays the answer.
        """


class WeightUpdater(Protocol):
    """The rollout worker, as a coordinator sees it."""

    async def update_weights(self, version: PolicyVersion, route: Any = None) -> LogprobGap:
        """Serve `version`, which arrives by `route` (the transport's own; None is the route of every late worker).
        Return the gap to the learner on the version's probe."""


class UpdateTarget(NamedTuple):
    """A rollout worker that is up."""

    name: str
    """The name of its member of the fleet, for messages."""
    process: str
    """The name of its process. A process that replaces it has another name, and belongs to no channel."""
    worker: Actor[WeightUpdater]


class SupersededError(RuntimeError):
    """The learner does not have the weights of this version any more. The next version comes soon."""


@dataclass(frozen=True, slots=True)
class CoordinatorContext:
    """The arguments from which a transport builds its coordinator."""

    update_timeout_s: float
    """The longest wait until a worker serves a version."""
    processes_per_engine: int
    learner: PolicyPublisher | None
    """None in a run without a learner, where nothing is published."""
    on_event: Callable[[str], None]
    background: asyncio.TaskGroup
    """The run's own tasks: a failure in one of them ends the run, and not a worker."""


class WeightCoordinator(Protocol):
    """The controller's side."""

    def __init__(self, context: CoordinatorContext) -> None: ...

    async def hand_out(self, version: PolicyVersion, serving: Sequence[str], late: bool) -> None:
        """Begin to distribute `version`: to the processes `serving`, which serve the version before, and, if `late`,
        to workers that do not. Return when the learner may change its weights again."""

    async def bring(self, target: UpdateTarget, version: PolicyVersion) -> LogprobGap:
        """Have a worker serve `version`. Return its gap to the learner on the probe.

        Raises:
            SupersededError: if it is too late for this version.
            RayError, TimeoutError: if the worker failed.
        """

    def expects(self, process: str, version: PolicyVersion) -> bool:
        """Tell whether other processes wait until `process` takes `version`."""


class EngineRoute(NamedTuple):
    """Where the processes of an engine get a version from. It travels through vLLM's RPC: plain values only."""

    source: str
    """A `WeightSource`, as `module:Class`."""
    arguments: tuple[Any, ...]


class WeightReceiver(Protocol):
    """The engine's side, in the rollout worker."""

    def __init__(self, run_id: str) -> None: ...

    def arriving(self, version: PolicyVersion, route: Any) -> AbstractAsyncContextManager[EngineRoute]:
        """Bring `version` to this node while the engine still samples. What was brought stays while the block runs."""

    def close(self) -> None:
        """Remove what it has left on the node."""


class WeightSource(Protocol):
    """The engine's side, in each of the engine's processes. It is made at the first update that comes from it."""

    failures: tuple[type[Exception], ...]
    """The errors that may end `tensors`, all of them expected."""

    def __init__(self, device: torch.device, rank: int) -> None: ...

    def tensors(
        self, arguments: Sequence[Any], layout: Sequence[WeightLayout]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield name and tensor of everything that was published."""

    def close(self) -> None:
        """Let go of what broke, so that the next update begins afresh."""
