"""How the learner ranks find each other.

Rank 0 opens the store through which all of them meet, and tells its port only then. A port that is chosen first and
opened later can be taken in between; this one cannot.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import TCPStore


def open_store(address: str) -> TCPStore:
    """A store that listens at `address`, on a port that was free (`store.port`)."""
    from torch.distributed import TCPStore

    listener = socket.create_server((address, 0))
    port = listener.getsockname()[1]
    return TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def join_store(address: str, port: int, timeout_s: float) -> TCPStore:
    """The store that another rank has opened."""
    from torch.distributed import TCPStore

    return TCPStore(
        address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
    )


def join_ranks(
    store: TCPStore,
    rank: int,
    ranks: int,
    *,
    on_gpu: bool,
    meet_timeout_s: float,
    collective_timeout_s: float,
) -> None:
    """Make torch's and DeepSpeed's group of all ranks, once per process.

    Raises:
        TimeoutError: some ranks did not come; names them.
    """
    import deepspeed
    import torch

    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": "0",  # Ray shows each rank its own devices only
        "MASTER_ADDR": store.host,
        "MASTER_PORT": str(store.port),
    }
    meet(store, rank, ranks, meet_timeout_s)
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=collective_timeout_s),
        device_id=torch.device("cuda", 0) if on_gpu and ranks > 1 else None,
    )
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", verbose=False)


def meet(store: TCPStore, rank: int, ranks: int, timeout_s: float) -> None:
    """Wait in `store` until all ranks have come.

    Raises:
        TimeoutError: some have not; names them.
    """
    from torch.distributed import DistStoreError

    store.set(f"arrived/{rank}", "")
    arrivals = [f"arrived/{other}" for other in range(ranks)]
    try:
        store.wait(arrivals, timedelta(seconds=timeout_s))
    except DistStoreError:
        missing = [other for other, key in enumerate(arrivals) if not store.check([key])]
        raise TimeoutError(
            f"learner rank(s) {missing} did not come to the rendezvous at {store.host}:{store.port} within "
            f"{timeout_s:g} s; see logs/learner-*.log in the run directory, or raise learner.start_timeout_s"
        ) from None
