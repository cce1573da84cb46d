"""Part 3: memory that two processes of one GPU share (cluster/core/shared_memory.py and shared_channel.py).

    arrives     a tensor arrives in the other process, with the allocator's settings of a learner rank
    dies        the other process is killed before it copies anything, which is noticed before the deadline

The processes are those of a learner rank and of an engine, and `weight_transport: ipc` connects them in this way.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from benchmarks.gpu_check.findings import Findings, Settings
from benchmarks.gpu_check.link import ADDRESS, START_S, Ending, collect_endings, fork_server, open_store
from cluster.core.shared_channel import BUFFERS, MemberChannel, ServingChannel
from cluster.core.shared_memory import allocate
from cluster.core.weight_buckets import BUCKET_BYTES
from cluster.core.weight_channel import FAILURES, ChannelSpec

DEADLINE_S = 30.0
NOTICED_S = 10.0
"""The longest time until the end of a process is noticed."""
BYTES, SMOKE_BYTES = 4 * BUCKET_BYTES, 2**20
PULL = "Set rollout.weight_transport: pull, and report it with this report's log."


def check_sharing(settings: Settings, findings: Findings) -> None:
    device = f"{settings.device}:0" if settings.on_gpu else "cpu"
    size = SMOKE_BYTES if settings.smoke else BYTES
    store = open_store()

    findings.begin("a tensor")
    endings = _run(ChannelSpec(ADDRESS, store.port, 1, 2, DEADLINE_S), "take", device, size)
    arrived = findings.check(
        "a tensor arrives in another process of the device",
        [ending.kind for ending in endings] == ["done", "done"],
        "; ".join(
            f"{who}: {one.kind} {one.text}" for who, one in zip(("rank", "engine"), endings, strict=True)
        ),
        PULL,
    )
    if arrived:
        findings.figure("shared GB/s", round(float(endings[0].text), 3))

    findings.begin("a process that dies")
    ending, _ = _run(ChannelSpec(ADDRESS, store.port, 2, 2, DEADLINE_S), "die", device, size)
    findings.check(
        "a process that dies is noticed",
        ending.kind == "refused" and "ended before" in ending.text and ending.seconds <= NOTICED_S,
        f"{ending.kind} after {ending.seconds:.1f} s: {ending.text}",
        PULL,
    )


def _run(spec: ChannelSpec, role: str, device: str, size: int) -> list[Ending]:
    """Run a rank and an engine's process with this role. Return their endings; processes that hang are killed."""
    context = fork_server()
    news: Any = context.Queue()
    processes = [
        context.Process(target=target, args=arguments, daemon=True)
        for target, arguments in (
            (_rank, (spec, device, size, news)),
            (_engine, (spec, role, device, size, news)),
        )
    ]
    for process in processes:
        process.start()
    limit_s = START_S + 3 * spec.timeout_s
    endings = collect_endings(news, 1 if role == "die" else 2, limit_s)
    for process in processes:
        process.kill()
        process.join()
    return [endings.get(at, Ending("hung", "it did not return", limit_s)) for at in range(2)]


def _rank(spec: ChannelSpec, device_name: str, size: int, news: Any) -> None:
    """Send two tensors. Report the rate of the second one in GB/s."""
    import torch

    device = torch.device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    tensor = torch.ones(size, dtype=torch.uint8, device=device)
    started = time.monotonic()
    try:
        memory = allocate(BUFFERS * BUCKET_BYTES, device)
        channel = ServingChannel(spec, 0, 1, device, lambda: memory)
        started = time.monotonic()
        channel.broadcast(tensor)
        channel.finish()
        begun = time.monotonic()
        channel.broadcast(tensor)
        channel.finish()
        news.put((0, "done", f"{size / 1e9 / (time.monotonic() - begun)}", time.monotonic() - started))
    except Exception as failure:  # whatever it is, the other side must know
        _report(news, 0, failure, started)


def _engine(spec: ChannelSpec, role: str, device_name: str, size: int, news: Any) -> None:
    """Take two tensors, or die before the first one."""
    import torch

    device = torch.device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    tensor = torch.zeros(size, dtype=torch.uint8, device=device)
    started = time.monotonic()
    try:
        channel = MemberChannel(spec, 1, device)
        if role == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        channel.broadcast(tensor)
        whole = int(tensor.min()) == int(tensor.max()) == 1
        channel.broadcast(tensor)
        news.put((1, "done" if whole else "changed", "", time.monotonic() - started))
    except Exception as failure:  # whatever it is, the other side must know
        _report(news, 1, failure, started)


def _report(news: Any, at: int, failure: Exception, started: float) -> None:
    kind = "refused" if isinstance(failure, FAILURES) else "failed"
    news.put((at, kind, f"{type(failure).__name__}: {failure}"[:500], time.monotonic() - started))
