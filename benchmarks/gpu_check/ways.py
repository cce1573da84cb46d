"""The kernels with which attention of shared prefixes can be computed on a device, for the parts that compare them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from learner.model.attention_kernels import EFFICIENT, PLAIN, packed_attention


def shared_ways(device: torch.device, dtype: torch.dtype) -> dict[str, AbstractContextManager[None]]:
    """Return a block per way, in which attention is computed in this way. `default` is what the learner chooses.

    On CPU there is also the layout of GPUs, with elementary operations in place of a kernel; on GPUs, the kernel that
    computes what FlashAttention does not.
    """
    ways: dict[str, AbstractContextManager[None]] = {"default": nullcontext()}
    if device.type == "cpu":
        ways["packed, as on GPUs"] = packed_attention(PLAIN)
    elif dtype != torch.float32:
        ways["efficient"] = packed_attention(EFFICIENT)
    return ways
