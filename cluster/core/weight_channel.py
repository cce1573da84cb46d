"""A channel for weights: a torch process group (NCCL or gloo) of the first learner rank and some engine processes.

Rank 0 belongs to the learner. All members are given the same spec, and every wait has a deadline:

    channel = WeightChannel(spec, rank, device)     # waits for all other members
    channel.broadcast(tensor)                       # copies rank 0's tensor into the tensor of every other member
    channel.close()

A channel in which anything failed is useless. The next set of members makes a new one, with a higher number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FAILURES = (RuntimeError, TimeoutError)
"""The errors that torch raises if a member does not arrive, is gone, or takes too long."""


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
    """The longest wait for all members to arrive, and then for each tensor."""


class WeightChannel:
    """The end of a channel in this process.

    Raises:
        RuntimeError, TimeoutError: if the other members did not arrive in time (see `FAILURES`).
    """

    def __init__(self, spec: ChannelSpec, rank: int, device: torch.device) -> None:
        from torch.distributed import PrefixStore, TCPStore

        self.spec = spec
        self.device = device
        timeout = timedelta(seconds=spec.timeout_s)
        store = TCPStore(spec.address, spec.port, is_master=False, wait_for_workers=False, timeout=timeout)
        make_group = _nccl if device.type == "cuda" else _gloo
        self._group: Any = make_group(PrefixStore(f"weights/{spec.number}", store), rank, spec.size, timeout)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Copy rank 0's contiguous `tensor` into `tensor` of every other member. Return when the copy is complete.

        Raises:
            RuntimeError, TimeoutError: if a member is gone, or did not take it in time (see `FAILURES`).
        """
        from torch.distributed import BroadcastOptions

        options = BroadcastOptions()
        options.rootRank = 0
        options.timeout = timedelta(seconds=self.spec.timeout_s)
        self._group.broadcast([tensor], options).wait()

    def close(self) -> None:
        """Leave the channel. A member that still waits for this process fails."""
        if self.device.type == "cuda":
            self._group.abort()
        del self._group


def _gloo(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    from torch.distributed import ProcessGroupGloo

    return ProcessGroupGloo(store, rank, size, timeout)


def _nccl(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    from torch.distributed import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
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
