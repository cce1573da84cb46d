"""The GPUs of this machine as NVIDIA's management library reports them, without torch and without using a GPU.

`nvidia-ml-py`, which comes with the GPU packages, provides the library's Python interface (the module `pynvml`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG slice. Sizes are in GiB."""

    index: int
    """The number of the GPU among all GPUs of the machine. A slice has that of its GPU."""
    uuid: str
    name: str
    memory_gib: float
    free_gib: float
    capability: tuple[int, int]
    """The compute capability, such as (9, 0)."""
    sliced: bool = False
    """True if the GPU is divided into MIG slices. Then its own memory may be unknown, which is 0."""
    slices: tuple[Gpu, ...] = ()
    """Its slices. A container sees some of them only."""
    processes: tuple[int, ...] = ()
    """The ids of the processes that use it."""


@dataclass(frozen=True, slots=True)
class Devices:
    """The driver and the GPUs of one machine."""

    driver: str = ""
    cuda: tuple[int, int] = (0, 0)
    """The newest CUDA version that the driver supports."""
    gpus: tuple[Gpu, ...] = ()
    error: str = ""
    """The reason if the driver does not answer. The other fields are empty then."""


def read_devices() -> Devices | None:
    """Return the GPUs of this machine, or None if it has no NVIDIA driver or `nvidia-ml-py` is not installed."""
    try:
        nvml: Any = import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        absent = (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED)
        return None if error.value in absent else Devices(error=str(error))
    try:
        cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()
        return Devices(
            driver=nvml.nvmlSystemGetDriverVersion(),
            cuda=(cuda // 1000, cuda % 1000 // 10),
            gpus=tuple(_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())),
        )
    except nvml.NVMLError as error:
        return Devices(error=str(error))
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    mode = _answer(nvml, nvml.nvmlDeviceGetMigMode, handle)  # GPUs that cannot be divided have none
    sliced = mode is not None and mode[0] == nvml.NVML_DEVICE_MIG_ENABLE
    capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
    slices = tuple(_slices(nvml, index, handle, capability)) if sliced else ()
    return _described(nvml, index, handle, capability, sliced, slices)


def _slices(nvml: Any, index: int, handle: Any, capability: tuple[int, int]) -> Iterator[Gpu]:
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            slice_handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError as error:
            if error.value in (nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_ERROR_NO_PERMISSION):
                continue
            raise
        yield _described(nvml, index, slice_handle, capability)


def _described(
    nvml: Any,
    index: int,
    handle: Any,
    capability: tuple[int, int],
    sliced: bool = False,
    slices: tuple[Gpu, ...] = (),
) -> Gpu:
    # The memory of a divided GPU is not shown to a container that has one of its slices.
    memory = (
        _answer(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
        if sliced
        else nvml.nvmlDeviceGetMemoryInfo(handle)
    )
    return Gpu(
        index=index,
        uuid=nvml.nvmlDeviceGetUUID(handle),
        name=nvml.nvmlDeviceGetName(handle),
        memory_gib=memory.total / 2**30 if memory else 0.0,
        free_gib=memory.free / 2**30 if memory else 0.0,
        capability=capability,
        sliced=sliced,
        slices=slices,
        processes=tuple(
            process.pid for process in _answer(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()
        ),
    )


def _answer(nvml: Any, question: Callable[[Any], Any], handle: Any) -> Any:
    """Return the library's answer, or None if the GPU or the container does not support the question."""
    try:
        return question(handle)
    except nvml.NVMLError as error:
        if error.value in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_NO_PERMISSION):
            return None
        raise


@dataclass(frozen=True, slots=True)
class Visible:
    """The GPUs that CUDA shows to this process, as `CUDA_VISIBLE_DEVICES` selects them."""

    gpus: tuple[Gpu, ...]
    slices: tuple[Gpu, ...] = ()
    """The MIG slices that are named."""
    faults: tuple[str, ...] = ()
    """The mistakes in the variable. CUDA ignores everything from the first mistake on."""


def visible_devices() -> str | None:
    """Return the value of `CUDA_VISIBLE_DEVICES`, or None if it is not set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def select(devices: Devices, variable: str | None) -> Visible:
    """Return the GPUs that `variable` selects, or all GPUs if it is None."""
    if variable is None:
        return Visible(devices.gpus)
    slices = [one for gpu in devices.gpus for one in gpu.slices]
    chosen: list[Gpu] = []
    faults: list[str] = []
    for entry in named_devices(variable):
        kind, among = ("MIG slice", slices) if entry.startswith("MIG-") else ("GPU", list(devices.gpus))
        found = [one for one in among if _names(entry, one)]
        if len(found) != 1:
            faults.append(
                f"there is no {kind} {entry}" if not found else f"{entry} is the name of several {kind}s"
            )
            break
        if found[0] in chosen:
            faults.append(f"{kind} {entry} is named twice")
            break
        chosen.append(found[0])
    return Visible(
        tuple(one for one in chosen if one not in slices),
        tuple(one for one in chosen if one in slices),
        tuple(faults),
    )


def named_devices(variable: str) -> Iterator[str]:
    """Yield the entries of `CUDA_VISIBLE_DEVICES` up to the first one that ends the list."""
    for entry in variable.split(","):
        if entry.strip() in ("", "-1"):
            return
        yield entry.strip()


def _names(entry: str, gpu: Gpu) -> bool:
    return gpu.index == int(entry) if entry.isdecimal() else gpu.uuid.startswith(entry)
