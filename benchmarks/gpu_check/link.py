"""Part 2: the weight channel (cluster/core/weight_channel.py), whose deadlines NCCL must not outlast.

    absent          member 1 never comes
    dies            member 1 arrives, and its process is killed before the first tensor
    shared device   both members are on one GPU
    broadcast       a tensor arrives (needs two GPUs)

Each member is a process of its own, because a wait inside NCCL cannot be interrupted.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from queue import Empty
from typing import Any

from benchmarks.gpu_check.findings import Findings, Settings
from cluster.core.weight_channel import FAILURES, ChannelSpec, WeightChannel

ADDRESS = "127.0.0.1"
DEADLINE_S, SMOKE_DEADLINE_S = 10.0, 2.0
MARGIN_S = 5.0
"""The longest time after the deadline at which an error may come."""
START_S = 20.0
"""The time in which a process starts and finds its device."""
ELEMENTS, SMOKE_ELEMENTS = 64 * 2**20, 2**16
"""The size of the tensor that is broadcast, in float32."""
PULL = "Set rollout.weight_transport: pull until this is fixed, and report it with this report's log."
NAMES_MEMBER = "the message names the member that is absent"


@dataclass(frozen=True, slots=True)
class Ending:
    """The report of a member."""

    kind: str
    """"done", "changed" (another tensor than rank 0's), "refused" (an error of `FAILURES`, or a `ValueError`), "failed"
    (another error), or "hung" (nothing was reported)."""
    text: str
    seconds: float
    """The time from joining to the end, without the start of the process."""


def check_link(settings: Settings, findings: Findings) -> None:
    import torch

    deadline_s = SMOKE_DEADLINE_S if settings.smoke else DEADLINE_S
    gpus = torch.cuda.device_count() if settings.on_gpu else 0
    near = f"{settings.device}:0" if gpus else "cpu"
    far = "cuda:1" if gpus > 1 else near
    scenarios = _Scenarios(settings, findings, deadline_s)
    scenarios.absent(near)
    if gpus == 1:
        findings.note("one GPU: a member that dies, and a broadcast between two GPUs, are not checked")
    else:
        scenarios.dies(near, far)
        scenarios.broadcast(near, far)
    if gpus:
        scenarios.shared_device(near)
    else:
        findings.note("on CPU, members may share a device: that two on one GPU are refused is not checked")


class _Scenarios:
    """The scenarios, each with a channel of its own at one store."""

    def __init__(self, settings: Settings, findings: Findings, deadline_s: float) -> None:
        self._findings = findings
        self._deadline_s = deadline_s
        self._elements = SMOKE_ELEMENTS if settings.smoke else ELEMENTS
        self._store = open_store()
        self._number = 0

    def absent(self, device: str) -> None:
        (ending,) = self._run("a member that never comes", ["broadcast"], [device])
        self._in_time("a member that never comes is noticed by the deadline", ending)
        self._findings.check(
            NAMES_MEMBER,
            bool(re.search(r"\b(member|rank|process|engine)s?\b\D*\b1\b", ending.text)),
            ending.text,
            "Report it: the message must say which member did not arrive.",
        )

    def dies(self, near: str, far: str) -> None:
        ending, _ = self._run("a member that dies", ["broadcast", "die"], [near, far])
        self._in_time("a member that dies after its arrival is noticed by the deadline", ending)

    def shared_device(self, device: str) -> None:
        endings = self._run("two members on one device", ["broadcast", "take"], [device, device])
        self._findings.check(
            "two members on one GPU are refused",
            all(ending.kind == "refused" for ending in endings),
            "; ".join(f"member {rank}: {ending.kind}, {ending.text}" for rank, ending in enumerate(endings)),
            "Give learner ranks and engines that share a channel a GPU each, or set rollout.weight_transport: pull.",
        )
        for ending in endings[:1]:
            self._in_time("two members on one GPU are refused by the deadline", ending)

    def broadcast(self, near: str, far: str) -> None:
        endings = self._run("a broadcast", ["broadcast", "take"], [near, far])
        arrived = self._findings.check(
            "a broadcast tensor arrives",
            all(ending.kind == "done" for ending in endings),
            "; ".join(f"member {rank}: {ending.kind} {ending.text}" for rank, ending in enumerate(endings)),
            PULL,
        )
        if arrived:
            self._findings.figure("broadcast GB/s", round(float(endings[0].text), 3))

    def _in_time(self, name: str, ending: Ending) -> None:
        limit_s = self._deadline_s + MARGIN_S
        self._findings.check(
            name,
            ending.kind == "refused" and ending.seconds <= limit_s,
            f"{ending.kind} after {ending.seconds:.1f} s, deadline {self._deadline_s:g} s",
            PULL,
        )

    def _run(self, step: str, roles: list[str], devices: list[str]) -> list[Ending]:
        """Run the members of a channel of two, of which those after the given ones are absent."""
        self._findings.begin(step)
        self._number += 1
        spec = ChannelSpec(ADDRESS, self._store.port, self._number, 2, self._deadline_s)
        return run_members(spec, roles, devices, self._elements)


def open_store() -> Any:
    """Open the store in which the members meet, as rank 0 of the learner does (learner/engine/process_setup.py)."""
    from torch.distributed import TCPStore

    listener = socket.create_server((ADDRESS, 0))
    port = listener.getsockname()[1]
    return TCPStore(
        ADDRESS,
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
        timeout=timedelta(seconds=START_S),
    )


def run_members(spec: ChannelSpec, roles: list[str], devices: list[str], elements: int) -> list[Ending]:
    """Run one process per role, from rank 0. Return their endings; processes that hang are killed."""
    context = fork_server()
    news: Any = context.Queue()
    processes = [
        context.Process(target=_member, args=(spec, rank, role, device, elements, news), daemon=True)
        for rank, (role, device) in enumerate(zip(roles, devices, strict=True))
    ]
    for process in processes:
        process.start()
    # A member has a deadline for its arrival and one for the tensor.
    limit_s = START_S + 2 * (spec.timeout_s + MARGIN_S)
    endings = collect_endings(news, sum(role != "die" for role in roles), limit_s)
    for process in processes:
        process.kill()
        process.join()
    return [endings.get(rank, Ending("hung", "it did not return", limit_s)) for rank in range(len(roles))]


@cache
def fork_server() -> Any:
    """Return a context whose processes begin with torch imported, and without a CUDA context."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", __name__])
    first = context.Process(target=time.sleep, args=(0,))
    first.start()  # the server imports torch now, and not within a member's time
    first.join()
    return context


def collect_endings(news: Any, expected: int, limit_s: float) -> dict[int, Ending]:
    """Collect what members report, by rank."""
    end = time.monotonic() + limit_s
    endings: dict[int, Ending] = {}
    while len(endings) < expected and (left := end - time.monotonic()) > 0:
        try:
            rank, *values = news.get(timeout=left)
        except Empty:
            break
        endings[rank] = Ending(*values)
    return endings


def _member(spec: ChannelSpec, rank: int, role: str, device_name: str, elements: int, news: Any) -> None:
    """Play one member. It reports its ending to `news`; one that dies reports nothing."""
    import torch

    device = torch.device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    tensor = torch.full((elements,), 1.0 if role == "broadcast" else 0.0, device=device)
    started = time.monotonic()
    try:
        channel = WeightChannel(spec, rank, device)
        if role == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        channel.broadcast(tensor)
        begun = time.monotonic()
        channel.broadcast(tensor)
        rate = tensor.numel() * tensor.element_size() / 1e9 / (time.monotonic() - begun)
        whole = float(tensor.min()) == float(tensor.max()) == 1.0
        text = f"{rate}" if whole else "the tensor has other values than rank 0's"
        news.put((rank, "done" if whole else "changed", text, time.monotonic() - started))
    except Exception as failure:  # whatever it is, the other side must know
        kind = "refused" if isinstance(failure, (*FAILURES, ValueError)) else "failed"
        news.put((rank, kind, f"{type(failure).__name__}: {failure}"[:500], time.monotonic() - started))
