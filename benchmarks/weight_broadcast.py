"""Measure a broadcast of weights over gloo, from one process to two others of its machine, as with the transport
`broadcast` between CPUs. No engines are started.

    buckets      in buckets, as the transport sends it
    tensors      one broadcast per tensor
    shared       in buckets through shared memory, as the transport `ipc` sends it between CPUs
    sockets      the same bytes through one TCP connection per receiver: what gloo has to do at least
    copy         copy the bytes once per receiver, into existing memory

    python benchmarks/weight_broadcast.py                # a minute on two cores
    python benchmarks/weight_broadcast.py --cases large

Target: buckets ≤ 1.3 × copy for 16 buckets.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch.distributed import TCPStore

from benchmarks.report import Target, checked, medians, ratios, seconds_in_turn, write_cases
from cluster.core.shared_channel import BUFFERS, MemberChannel, ServingChannel
from cluster.core.shared_memory import allocate
from cluster.core.types import WeightLayout
from cluster.core.weight_buckets import (
    BUCKET_BYTES,
    BucketMemory,
    plan_buckets,
    receive_in_buckets,
    send_in_buckets,
)
from cluster.core.weight_channel import ChannelSpec, WeightChannel

RECEIVERS = 2
TARGETS = [Target("copy / buckets", 1 / 1.3)]
CPU = torch.device("cpu")
ADDRESS = "127.0.0.1"
CASES = {
    # 16 buckets of 64 MiB
    "large": [(f"layer {layer}", (1024, 2048)) for layer in range(128)],
    # 300 tensors of 256 KiB, of which most of the time is the calls
    "many": [(f"layer {layer}", (256, 256)) for layer in range(300)],
    "tiny": [(f"layer {layer}", (512, 1024)) for layer in range(10)],
}
WAYS = {"buckets": BUCKET_BYTES, "tensors": 1, "shared": BUCKET_BYTES}
"""The capacity of a bucket. A tensor that is larger is alone in its bucket."""


def receive(spec: ChannelSpec, rank: int, layout: list[WeightLayout], orders: Connection) -> None:
    """Receive whatever is ordered, in a process of its own."""
    torch.set_num_threads(1)
    channel = WeightChannel(spec, rank, CPU)
    shared = MemberChannel(replace(spec, number=spec.number + 1), rank, CPU)
    size = sum(bucket.size for bucket in plan_buckets(layout, 1))
    memory, buckets = np.ones(size, dtype=np.uint8), BucketMemory(CPU)
    listener = socket.create_server((ADDRESS, 0))
    orders.send(listener.getsockname()[1])
    connection, _ = listener.accept()
    with closing(connection):
        while (order := orders.recv()) is not None:
            if order == "sockets":
                connection.recv_into(memory.data, size, socket.MSG_WAITALL)
            else:
                broadcast = shared.broadcast if order == "shared" else channel.broadcast
                for _ in receive_in_buckets(broadcast, layout, buckets, WAYS[order]):
                    pass
            orders.send("received")
    channel.close()
    shared.close()


def measure(shapes: Sequence[tuple[str, tuple[int, ...]]], repeats: int) -> dict[str, Any]:
    layout = [WeightLayout(name, "float32", shape) for name, shape in shapes]
    weights = {name: torch.randn(shape) for name, shape in shapes}
    size = sum(weight.nbytes for weight in weights.values())
    source = np.ones(size, dtype=np.uint8)
    copies = [np.ones_like(source) for _ in range(RECEIVERS)]
    store = TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    spec = ChannelSpec(ADDRESS, store.port, 1, 1 + RECEIVERS, 60.0)
    with ExitStack() as stack:
        pipes, channel, shared = start(stack, spec, layout)
        sockets = [
            stack.enter_context(closing(socket.create_connection((ADDRESS, pipe.recv())))) for pipe in pipes
        ]

        def ordered(order: str, send: Callable[[], None]) -> None:
            for pipe in pipes:
                pipe.send(order)
            send()
            for pipe in pipes:
                pipe.recv()

        def send_by_sockets() -> None:
            threads = [threading.Thread(target=to.sendall, args=(source,)) for to in sockets]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        buckets = BucketMemory(CPU)

        def send(name: str) -> None:
            broadcast = shared.broadcast if name == "shared" else channel.broadcast
            send_in_buckets(broadcast, layout, weights.items(), buckets, WAYS[name])
            shared.finish()

        def copy_all() -> None:
            for copy in copies:
                np.copyto(copy, source)

        ways: dict[str, Callable[[], None]] = {
            **{name: partial(ordered, name, partial(send, name)) for name in WAYS},
            "sockets": lambda: ordered("sockets", send_by_sockets),
            "copy": copy_all,
        }
        for way in ways.values():  # once to warm up
            way()
        seconds = seconds_in_turn(ways, repeats)
    median_s = medians(seconds)
    return {
        "bytes": size,
        "buckets": len(plan_buckets(layout)),
        "receivers": RECEIVERS,
        "seconds": seconds,
        "median_s": median_s,
        "ratios": ratios(median_s, ["copy", "sockets"]),
    }


def start(
    stack: ExitStack, spec: ChannelSpec, layout: list[WeightLayout]
) -> tuple[list[Connection], WeightChannel, ServingChannel]:
    """Start the receivers, which end with the stack. Return the pipes to them and the own ends of both channels."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for rank in range(1, 1 + RECEIVERS):
        here, there = context.Pipe()
        process = context.Process(target=receive, args=(spec, rank, layout, there))
        process.start()
        stack.callback(process.join, 60)
        stack.callback(here.send, None)
        pipes.append(here)
    channel = WeightChannel(spec, 0, CPU)
    stack.callback(channel.close)
    memory = allocate(BUFFERS * BUCKET_BYTES, CPU)
    shared = ServingChannel(replace(spec, number=spec.number + 1), 0, 1, CPU, lambda: memory)
    stack.callback(shared.close)
    return pipes, channel, shared


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["large", "many"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, once, to check that it runs")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/weight_broadcast.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in ["tiny"] if arguments.smoke else arguments.cases:
        print(name, flush=True)
        found = measure(CASES[name], 1 if arguments.smoke else arguments.repeats)
        if name == "large":
            found["targets"] = checked(found["ratios"], TARGETS)
        write_cases("weight_broadcast", {name: found}, arguments.output)


if __name__ == "__main__":
    main()
