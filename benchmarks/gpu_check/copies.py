"""Part 8: the rates of copies between host and device, from pageable and from pinned memory, and of writes to /dev/shm,
through which weights travel."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu_check.findings import Findings, Settings

SIZE, SMOKE_SIZE = 512 * 2**20, 8 * 2**20
"""The number of bytes that are copied."""
REPEATS = 3
WRITERS = (1, 4)
"""The numbers of threads that write a file."""
SHARED_MEMORY = Path("/dev/shm")
TABLE = "rates"


def check_copies(settings: Settings, findings: Findings) -> None:
    size = SMOKE_SIZE if settings.smoke else SIZE
    findings.begin("host memory")
    source = torch.randint(256, (size,), dtype=torch.uint8)
    target = torch.empty_like(source)
    _record(findings, "host to host", lambda: target.copy_(source), size)
    if settings.on_gpu:
        _device_copies(findings, source, size)
    else:
        findings.note("copies from pinned memory need a GPU, and are not measured")
    _writes(findings, source, size)


def _record(findings: Findings, name: str, copy: Callable[[], object], size: int) -> float:
    """Measure a copy, and record the best rate of several in GB/s."""
    copy()  # pages are allocated
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        copy()
        seconds.append(time.perf_counter() - started)
    rate = size / 1e9 / min(seconds)
    findings.row(TABLE, {"copy": name, "GB/s": round(rate, 2)})
    return rate


def _device_copies(findings: Findings, source: torch.Tensor, size: int) -> None:
    findings.begin("pinned memory")
    device = torch.device("cuda", 0)
    there = torch.empty(size, dtype=torch.uint8, device=device)
    pinned = source.pin_memory()
    back = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    pageable = torch.empty_like(source)

    def copied(target: torch.Tensor, origin: torch.Tensor) -> None:
        target.copy_(origin, non_blocking=True)
        torch.cuda.synchronize(device)

    copies = {
        "pageable host to device": partial(copied, there, source),
        "pinned host to device": partial(copied, there, pinned),
        "device to pageable host": partial(copied, pageable, there),
        "device to pinned host": partial(copied, back, there),
    }
    rates = {name: _record(findings, name, copy, size) for name, copy in copies.items()}
    findings.check(
        "what returns from the device is what was sent",
        torch.equal(back, source) and torch.equal(pageable, source),
        f"{size} bytes each way",
        "Test the GPU's memory and its slot (nvidia-smi -q -d ECC, dcgmi diag).",
    )
    into, out_of = (
        rates["pinned host to device"] / rates["pageable host to device"],
        rates["device to pinned host"] / rates["device to pageable host"],
    )
    findings.note(f"pinned memory is {into:.1f} times as fast into the device, {out_of:.1f} times out of it")


def _writes(findings: Findings, source: torch.Tensor, size: int) -> None:
    """Write files into shared memory with several threads, each a part of the bytes."""
    free = shutil.disk_usage(SHARED_MEMORY).free
    enough = findings.check(
        "/dev/shm has space for the test's file",
        free > 2 * size,
        f"{free / 2**20:.0f} MiB free, the file has {size / 2**20:.0f} MiB",
        "Enlarge /dev/shm, or remove what earlier runs left there (docker run --shm-size=16g).",
    )
    if not enough:
        return
    data = source.numpy()
    for writers in WRITERS:
        findings.begin(f"writing to /dev/shm with {writers} thread(s)")
        with (
            tempfile.NamedTemporaryFile(dir=SHARED_MEMORY, prefix="gpu-check-") as file,
            ThreadPoolExecutor(writers) as threads,
        ):
            bounds = [size * part // writers for part in range(writers + 1)]

            def write(descriptor: int, begin: int, end: int) -> None:
                while begin < end:
                    begin += os.pwrite(descriptor, data[begin:end].data, begin)

            def all_parts(descriptor: int = file.fileno(), bounds: list[int] = bounds) -> None:
                os.ftruncate(descriptor, 0)
                list(threads.map(partial(write, descriptor), bounds[:-1], bounds[1:]))

            _record(findings, f"file in /dev/shm, {writers} thread(s)", all_parts, size)
