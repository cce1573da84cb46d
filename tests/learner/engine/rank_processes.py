"""Processes that form a group over gloo, as learner ranks do, without Ray."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

TIMEOUT_S = 600.0
# The processes are forks of one server that has imported the libraries, which takes several seconds for each of them.
PRELOADED = ["torch", "transformers", "deepspeed", "learner.engine.deepspeed_engine"]


def in_ranks(ranks: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` in `ranks` new processes that have joined one group. Return the results by rank.

    The function belongs to a module. Its results are tensors, numbers, texts and containers of them.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    os.environ["DS_ACCELERATOR"] = "cpu"
    multiprocessing.set_forkserver_preload(PRELOADED)
    start_processes(_run, (ranks, port, folder, function, arguments), nprocs=ranks, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


def _run(
    rank: int, ranks: int, port: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    from torch.distributed import TCPStore

    torch.set_num_threads(1)
    from learner.engine.process_setup import join_ranks

    store = TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)
    join_ranks(
        store,
        rank,
        ranks,
        on_gpu=False,
        meet_timeout_s=TIMEOUT_S,
        collective_timeout_s=TIMEOUT_S,
    )
    torch.save(function(*arguments), folder / f"{rank}.pt")
    torch.distributed.barrier()  # rank 0 has the store
