"""Digests of the parameters that an engine holds, as exact evidence that two engines serve the same weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class WeightsDigest(NamedTuple):
    """A digest of all parameters of an engine. Digests of different devices cannot be compared."""

    device: str
    """The model of the device. For some kernels vLLM packs weights, and the device decides which kernels it uses."""
    sha256: str


def digest_of(device: str, processes: Iterable[Mapping[str, str]]) -> WeightsDigest:
    """Return the digest of an engine, given the checksums of each of its processes, by name of the parameter.

    vLLM's names contain the rank of the process, so the order of the processes does not matter.
    """
    checksums = sorted(item for process in processes for item in process.items())
    return WeightsDigest(device, hashlib.sha256(json.dumps(checksums).encode()).hexdigest())


def device_model(on_gpu: bool) -> str:
    """Return the model of the GPU, or the instruction sets of the CPU, for which vLLM packs weights."""
    if on_gpu:
        from vllm.platforms import current_platform

        return str(current_platform.get_device_name())
    import torch

    return " ".join(sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True))
