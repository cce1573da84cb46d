"""Simulate an NVIDIA GPU for vLLM on a machine without one.

vLLM then resolves its configuration, and imports its kernels and attention backends, as it does on the GPU. No kernel
can run. `ensure_driver` comes first, before the process imports torch; `simulate` before it imports vLLM's modules.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

STUB_SOURCE = Path(__file__).with_name("stub_driver.c")
LIBRARY = "libcuda.so.1"
STUB_VARIABLE = "SIMULATED_GPU_DRIVER"
"""The directory of the stub, in the environment of a process that uses it."""


@dataclass(frozen=True, slots=True)
class Device:
    """The properties of a GPU from which vLLM derives its configuration."""

    name: str
    capability: tuple[int, int]
    memory_gib: int
    multiprocessors: int


DEVICES = {
    "A100": Device("NVIDIA A100-SXM4-80GB", (8, 0), 80, 108),
    "H100": Device("NVIDIA H100 80GB HBM3", (9, 0), 80, 132),
}


def has_driver() -> bool:
    """Tell whether the driver's library, or the stub, can be loaded into this process."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def build_stub(directory: Path) -> None:
    """Compile the stub of the driver's library into `directory`.

    Raises:
        RuntimeError: if there is no C compiler, or if it fails.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError(
            "there is no C compiler (cc, gcc) to build the stub driver: install one, or set CC"
        )
    command = [compiler, "-x", "c", "-shared", "-fPIC", "-o", str(directory / LIBRARY), str(STUB_SOURCE)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")


def stub_environment(directory: Path) -> dict[str, str]:
    """Return the variables of a process that uses the stub in `directory`. They must be set when it starts."""
    search_path = os.pathsep.join(filter(None, [str(directory), os.environ.get("LD_LIBRARY_PATH")]))
    return {"LD_LIBRARY_PATH": search_path, STUB_VARIABLE: str(directory)}


def ensure_driver() -> None:
    """If the machine has no driver, run this process's command again with the stub. Return if there is a driver.

    The loader reads its search path only when a process starts.
    """
    if has_driver():
        return
    if STUB_VARIABLE in os.environ:
        raise RuntimeError(f"the stub in {os.environ[STUB_VARIABLE]} cannot be loaded: {LIBRARY}")
    directory = Path(tempfile.mkdtemp(prefix="stub-driver-"))
    try:
        build_stub(directory)
        command = [sys.executable, *sys.orig_argv[1:]]
        result = subprocess.run(command, env=os.environ | stub_environment(directory))
    finally:
        shutil.rmtree(directory)
    sys.exit(result.returncode)


def simulate(device: Device, count: int | None = None) -> None:
    """Make vLLM see `count` GPUs of a kind; None: as many as CUDA_VISIBLE_DEVICES lists.

    It replaces vLLM's platform, and the two questions that are put to torch and Triton without it: the properties of a
    device, and whether Triton has a driver.
    """
    import torch
    from triton.backends import backends

    backends["nvidia"].driver.is_active = staticmethod(lambda: True)
    properties = SimpleNamespace(
        name=device.name,
        major=device.capability[0],
        minor=device.capability[1],
        total_memory=device.memory_gib * 2**30,
        multi_processor_count=device.multiprocessors,
        is_integrated=False,
    )
    torch.cuda.get_device_properties = lambda *_: properties  # type: ignore[assignment]
    torch.cuda.get_device_capability = lambda *_: device.capability

    from vllm import platforms

    platforms._current_platform = _platform(device, count)


def _platform(device: Device, count: int | None) -> Any:
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    def visible() -> int:
        return len(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(","))

    class SimulatedCudaPlatform(NonNvmlCudaPlatform):  # type: ignore[misc]
        @classmethod
        def device_count(cls) -> int:
            return visible() if count is None else count

        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(*device.capability)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return device.name

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return device.memory_gib * 2**30

        @classmethod
        def is_fully_connected(cls, device_ids: list[int]) -> bool:
            return True

    return SimulatedCudaPlatform()
