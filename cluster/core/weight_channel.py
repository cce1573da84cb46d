"""A channel for weights: a torch process group (NCCL or gloo) of the first learner rank and some engine processes.

Rank 0 belongs to the learner. All members are given the same spec, and every wait has a deadline:

    channel = WeightChannel(spec, rank, device)     # waits for all other members
    channel.broadcast(tensor)                       # copies rank 0's tensor into the tensor of every other member
    channel.close()

A channel in which anything failed is useless. The next set of members makes a new one, with a higher number.

NCCL has no deadline of its own before a communicator exists, and forms it in the first collective. So the members first
meet in the learner's store, where a missing one is named and a shared GPU is refused. What follows runs in threads that
are given up at the deadline.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
GroupFactory = Callable[[Any, int, int, timedelta], Any]
"""Makes this process's end of a group from a store, the own rank, the number of members, and the longest wait."""

FAILURES = (RuntimeError, TimeoutError)
"""The errors that are raised if a member does not arrive, is gone, or takes too long."""


@dataclass(frozen=True, slots=True)
class OfferRequest:
    """Asks the learner to put a version that it keeps into the object store, for workers outside of the channel."""


@dataclass(frozen=True, slots=True)
class ChannelSpec:
    """The facts that a process needs to become a member."""

    address: str
    port: int
    """The port of the learner's store, in which the members find each other."""
    number: int
    """Counts the channels of a run, from 1."""
    size: int
    """The number of processes, including the learner's."""
    timeout_s: float
    """The longest wait for all members to arrive, then for the connection, and then for each broadcast."""
    names: tuple[str, ...] = ()
    """The names of the members by rank, for messages. May be empty."""

    @property
    def prefix(self) -> str:
        """The beginning of this channel's keys in the store."""
        return f"weights/{self.number}"

    def store(self) -> Any:
        """Connect to the learner's store."""
        from torch.distributed import TCPStore

        timeout = timedelta(seconds=self.timeout_s)
        return TCPStore(self.address, self.port, is_master=False, wait_for_workers=False, timeout=timeout)

    def name(self, rank: int) -> str:
        """Return the words for a member in a message."""
        return f"rank {rank} ({self.names[rank]})" if rank < len(self.names) else f"rank {rank}"


@dataclass(frozen=True, slots=True)
class Arrival:
    """The facts that a member tells the others when it arrives."""

    rank: int
    host: str
    device: str
    """"cpu", or the UUID of the GPU."""


class WeightChannel:
    """The end of a channel in this process. `make_group` replaces the backend of the device.

    Raises:
        TimeoutError: if some members did not arrive in time, or the connection was not complete in time.
        RuntimeError: if two members have the same GPU, or a member broke the connection.
    """

    def __init__(
        self, spec: ChannelSpec, rank: int, device: torch.device, make_group: GroupFactory | None = None
    ) -> None:
        import torch
        from torch.distributed import PrefixStore

        self.spec = spec
        self.device = device
        self._group: Any = None
        timeout = timedelta(seconds=spec.timeout_s)
        make_group = make_group or (_nccl if device.type == "cuda" else _gloo)
        store = PrefixStore(spec.prefix, spec.store())
        refuse_shared_devices(meet(store, spec, own_arrival(rank, device)), spec)
        try:
            self._group = self._bounded(lambda: make_group(store, rank, spec.size, timeout), "connecting")
            # NCCL connects in the first collective. A failure here is one of the connection, and not of a tensor.
            self._broadcast(torch.zeros(1, dtype=torch.uint8, device=device), "connecting")
        except FAILURES:
            self.close()
            raise

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Copy rank 0's contiguous `tensor` into `tensor` of every other member. Return when the copy is complete.

        Raises:
            RuntimeError, TimeoutError: if a member is gone, or did not take it in time (see `FAILURES`).
        """
        self._broadcast(tensor, "broadcasting")

    def close(self) -> None:
        """Leave the channel. A member that still waits for this process fails."""
        group, self._group = self._group, None
        if group is None:
            return
        try:
            self._bounded(group.abort, "closing", min(_CLOSING_S, self.spec.timeout_s))
        except FAILURES as failure:
            logger.warning("weight channel %d is left as it is: %s", self.spec.number, failure)

    def _broadcast(self, tensor: torch.Tensor, doing: str) -> None:
        from torch.distributed import BroadcastOptions

        options = BroadcastOptions()
        options.rootRank = 0
        options.timeout = timedelta(seconds=self.spec.timeout_s)
        self._bounded(lambda: self._group.broadcast([tensor], options).wait(), doing)

    def _bounded(self, work: Callable[[], ResultT], doing: str, timeout_s: float | None = None) -> ResultT:
        """Do `work` in a thread, on the same device and stream. Return its result."""
        spec = self.spec
        timeout_s = spec.timeout_s if timeout_s is None else timeout_s
        others = ", ".join(map(spec.name, range(spec.size)))
        what = f"{doing} weight channel {spec.number} of {others}"
        with_stream = _with_stream_of_caller(self.device)

        def on_stream() -> ResultT:
            with with_stream():
                return work()

        return bounded(on_stream, timeout_s + _GRACE_S, what)


_GRACE_S = 1.0
"""The time by which the deadline of a group itself comes first. Its message says more."""
_CLOSING_S = 5.0
"""The longest wait until a group is aborted."""


def bounded(work: Callable[[], ResultT], timeout_s: float, what: str) -> ResultT:
    """Do `work` in a thread and return its result. At the deadline the thread is left to itself: no other thread can
    end a call of NCCL. It does not keep the process from ending.

    Raises:
        TimeoutError: if there is no result in time. The message names `what` was waited for.
    """
    outcome: Future[ResultT] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # raised again in the caller's thread
            outcome.set_exception(error)

    threading.Thread(target=run, name=what, daemon=True).start()
    try:
        return outcome.result(timeout_s)
    except TimeoutError:
        if outcome.done():  # the error of the work itself
            raise
        raise TimeoutError(
            f"{what} took longer than {timeout_s:g} s: a member has ended, hangs, or cannot be reached "
            "(NCCL_DEBUG=INFO shows the connections of GPUs)"
        ) from None


def own_arrival(rank: int, device: torch.device) -> Arrival:
    """Return the facts that this process tells the other members."""
    if device.type != "cuda":
        return Arrival(rank, socket.gethostname(), "cpu")
    import torch

    return Arrival(rank, socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid))


def meet(store: Any, spec: ChannelSpec, arrival: Arrival) -> list[Arrival]:
    """Wait in `store` until all members of the channel have arrived. Return their arrivals, by rank.

    Raises:
        TimeoutError: if some did not arrive; the message names them.
    """
    store.set(f"arrived/{arrival.rank}", json.dumps(asdict(arrival)))
    keys = [f"arrived/{rank}" for rank in range(spec.size)]
    if missing := absent(store, keys, spec.timeout_s):
        names = [spec.name(rank) for rank, key in enumerate(keys) if key in missing]
        raise TimeoutError(
            f"{', '.join(names)} did not arrive at weight channel {spec.number} (of {spec.size} processes, at "
            f"{spec.address}:{spec.port}) within {spec.timeout_s:g} s"
        )
    return [Arrival(**json.loads(store.get(key))) for key in keys]


def absent(store: Any, keys: Sequence[str], timeout_s: float) -> list[str]:
    """Wait until all `keys` are in `store`. Return those that are not there at the deadline."""
    from torch.distributed import DistStoreError

    if not keys:
        return []
    try:
        store.wait(list(keys), timedelta(seconds=timeout_s))
    except DistStoreError:
        return [key for key in keys if not store.check([key])]
    return []


def refuse_shared_devices(arrivals: Sequence[Arrival], spec: ChannelSpec) -> None:
    """Check that no two members have the same GPU, on which NCCL would hang or fail late.

    Raises:
        RuntimeError: if two members have the same GPU.
    """
    members: dict[tuple[str, str], list[str]] = defaultdict(list)
    for arrival in arrivals:
        if arrival.device != "cpu":
            members[arrival.host, arrival.device].append(spec.name(arrival.rank))
    for (host, gpu), sharing in members.items():
        if len(sharing) > 1:
            raise RuntimeError(
                f"{' and '.join(sharing)} of weight channel {spec.number} have the same GPU ({gpu} on {host}): "
                "set rollout.weight_transport to pull, or give each process a GPU of its own"
            )


def _with_stream_of_caller(device: torch.device) -> Callable[[], Any]:
    """Return a context for another thread, in which CUDA's calls use the device and the stream of this thread."""
    if device.type != "cuda":
        return nullcontext
    import torch

    stream = torch.cuda.current_stream(device)
    return lambda: torch.cuda.stream(stream)


def _gloo(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    from torch.distributed import ProcessGroupGloo

    return ProcessGroupGloo(store, rank, size, timeout)


def _nccl(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    from torch.distributed import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    # A communicator that does not block can be aborted while it connects. Torch then waits for it, for a time that it
    # reads from the environment once per process.
    options.config.blocking = 0
    os.environ.setdefault("TORCH_NCCL_NONBLOCKING_TIMEOUT", str(math.ceil(timeout.total_seconds())))
    with _nccl_waits_on_the_host():
        return ProcessGroupNCCL(store, rank, size, options)


@contextmanager
def _nccl_waits_on_the_host() -> Iterator[None]:
    """Make groups that are created in this block raise an error at their deadline. By default a watchdog would end the
    whole process, or the failure would go unnoticed."""
    name = "TORCH_NCCL_BLOCKING_WAIT"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
