"""Check the GPUs of a machine: the driver, the compute capability, MIG slices, and other programs. Pure.

`launch.py check` applies this to this machine, and `launch.py doctor` to every node.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.configuration.devices import Devices, Gpu, Visible, select
from cluster.core.config import RunConfig
from cluster.core.problem import Problem

CUDA = (13, 0)
"""The CUDA version of the packages in requirements/gpu.txt."""
DRIVER = "580"
"""The first driver that supports it. Source: https://docs.nvidia.com/cuda/cuda-toolkit-release-notes, table 2."""
CAPABILITY = (7, 5)
"""The lowest compute capability for which torch and vLLM have kernels."""
BFLOAT16_CAPABILITY = (8, 0)
"""The lowest compute capability on which vLLM computes in bfloat16."""
IN_USE = 0.1
"""The fraction of a GPU's memory above which it counts as used by another program. A desktop needs less."""

_WHERE = "environment"


def device_problems(
    devices: Devices, variable: str | None, config: RunConfig | None = None
) -> Iterator[Problem]:
    """Yield the problems of a machine's GPUs for a run that needs some of them.

    Args:
        devices: The GPUs of the machine.
        variable: The value of `CUDA_VISIBLE_DEVICES` there, or None if it is not set.
        config: The run. Without it only the GPUs themselves are checked.
    """
    if devices.error:
        yield Problem(
            _WHERE,
            f"the NVIDIA driver does not answer ({devices.error})",
            "check nvidia-smi; after an update of the driver, restart the machine",
        )
        return
    if devices.cuda < CUDA:
        yield Problem(
            _WHERE,
            f"the NVIDIA driver {devices.driver} supports CUDA {_dotted(devices.cuda)}, but the GPU packages need "
            f"{_dotted(CUDA)}",
            f"install driver {DRIVER} or newer",
        )
    visible = select(devices, variable)
    for fault in visible.faults:
        yield Problem(
            _WHERE,
            f"CUDA_VISIBLE_DEVICES={variable}: {fault} (this machine has {len(devices.gpus)} GPUs, from 0)",
            "correct it (nvidia-smi -L lists the names), or unset it to use all GPUs",
        )
    yield from _check_slices(visible, config)
    for gpu in (*visible.gpus, *visible.slices):
        yield from _check_gpu(gpu, config)


def _check_slices(visible: Visible, config: RunConfig | None) -> Iterator[Problem]:
    """Report GPUs that are divided, except a single slice that one rank and one engine can use like a small GPU."""
    divided = [str(gpu.index) for gpu in visible.gpus if gpu.sliced]
    if divided:
        yield Problem(
            _WHERE,
            f"GPU {', '.join(divided)} is divided into MIG slices, which Ray does not count",
            "turn MIG off (nvidia-smi -mig 0), or set CUDA_VISIBLE_DEVICES to the name of one slice (nvidia-smi -L)",
        )
    elif visible.slices and len(visible.gpus + visible.slices) > 1:
        yield Problem(
            _WHERE,
            f"CUDA_VISIBLE_DEVICES names {len(visible.slices)} MIG slice(s) and {len(visible.gpus)} GPU(s), but CUDA "
            "shows a process one slice at most",
            "set it to the name of one slice (nvidia-smi -L), or turn MIG off",
        )
    elif visible.slices and config is not None and _has_links(config):
        yield Problem(
            _WHERE,
            "CUDA_VISIBLE_DEVICES names a MIG slice, and NCCL does not connect slices",
            "set learner.ranks and rollout.tensor_parallel_size to 1 and rollout.weight_transport to pull, or turn MIG "
            "off",
        )


def _has_links(config: RunConfig) -> bool:
    links = config.learner.ranks > 1 or config.rollout.tensor_parallel_size > 1
    return links or config.rollout.weight_transport == "broadcast"


def _check_gpu(gpu: Gpu, config: RunConfig | None) -> Iterator[Problem]:
    name = f"GPU {gpu.index} ({gpu.name})"
    if gpu.capability < CAPABILITY:
        yield Problem(
            _WHERE,
            f"{name} has compute capability {_dotted(gpu.capability)}, but torch and vLLM need {_dotted(CAPABILITY)}",
            "use a newer GPU, or set CUDA_VISIBLE_DEVICES to the others",
        )
    elif config is not None:
        yield from capability_problems(name, gpu.capability, config)
    if gpu.sliced:  # which is a problem of its own; a slice has its own memory
        return
    used = 1 - gpu.free_gib / gpu.memory_gib
    needed = config.rollout.gpu_memory_utilization if config and config.rollout.gpus_per_worker else 0.0
    if used > min(IN_USE, 1 - needed):
        by = f"processes {', '.join(map(str, gpu.processes))}" if gpu.processes else "another container"
        yield Problem(
            _WHERE,
            f"{name} is in use by {by}: {gpu.free_gib:.1f} of its {gpu.memory_gib:.1f} GiB are free",
            "wait until it is free, or set CUDA_VISIBLE_DEVICES to other GPUs",
        )


def capability_problems(name: str, capability: tuple[int, int], config: RunConfig) -> Iterator[Problem]:
    """Yield the settings of the run that a GPU does not support."""
    if capability < BFLOAT16_CAPABILITY and config.model.dtype == "bfloat16":
        yield Problem(
            "model.dtype",
            f"{name} has compute capability {_dotted(capability)}, and vLLM computes in bfloat16 from "
            f"{_dotted(BFLOAT16_CAPABILITY)} on",
            "set it to float32",
        )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
