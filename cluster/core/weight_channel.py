"""The link over which weights go from the learner into engines: a torch process group (NCCL or gloo) of one learner
rank and some engine processes, which lasts for as long as its members do.

Rank 0 is the learner's. Everybody comes in with the same spec, and whatever fails, fails in time:

    link = WeightChannel(spec, rank, device)     # waits for all others
    link.broadcast(tensor)                      # from rank 0 into everybody's
    link.close()

A link in which something failed is of no use any more. The next set of members makes a new one, with a higher number.
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
"""What torch raises where a member does not come, is gone, or takes too long. Its own errors are RuntimeErrors."""


@dataclass(frozen=True, slots=True)
class ChannelSpec:
    """What a member must know to come in."""

    address: str
    port: int
    """Of the learner's store, where the members find each other."""
    number: int
    """Of the link, among all of a run."""
    size: int
    """Processes, the learner's among them."""
    timeout_s: float
    """Longest wait for all to come, and then for each tensor."""


class WeightChannel:
    """This process's end.

    Raises:
        RuntimeError, TimeoutError: the others did not come in time (see `FAILURES`).
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
        """Rank 0's contiguous `tensor` into that of every other member. Returns when it is there.

        Raises:
            RuntimeError, TimeoutError: somebody is gone, or did not take it in time (see `FAILURES`).
        """
        from torch.distributed import BroadcastOptions

        options = BroadcastOptions()
        options.rootRank = 0
        options.timeout = timedelta(seconds=self.spec.timeout_s)
        self._group.broadcast([tensor], options).wait()

    def close(self) -> None:
        """Leave. Who still waits for this process fails."""
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
    """A group that is made in this block raises when its time is over. Otherwise a watchdog ends the whole process, or
    nobody notices."""
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
