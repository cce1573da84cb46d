"""Models whose parameters ZeRO 3 has partitioned over the ranks, before DeepSpeed's engine is built around them.

The engine gathers the parameters of a module around its forward pass. These functions do the same for the few passes
that the set-up needs, and answer what a partitioned parameter does not say itself. For other models they do nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Return True if DeepSpeed manages this parameter, so that it may be empty outside of a forward pass."""
    return hasattr(parameter, "ds_id")


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Return the shape of the parameter when it is gathered."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def whole_size(parameter: nn.Parameter) -> int:
    """Return the number of elements of the parameter when it is gathered."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


@contextmanager
def gathered_in_forward(model: nn.Module) -> Iterator[None]:
    """Within the block, gather the parameters of each module of `model` around its forward pass, and no others. A
    forward pass is then a collective: all ranks must do the same ones. A pass that fails frees what it had gathered.
    """
    held: list[list[Any]] = []

    def gather(module: nn.Module, _: Any) -> None:
        missing: list[Any] = [p for p in module.parameters(recurse=False) if _is_missing(p)]
        if missing:
            missing[0].all_gather(param_list=missing)
        held.append(missing)

    def free(*_: Any) -> None:
        if gathered := held.pop():
            gathered[0].partition(param_list=gathered)

    handles = []
    for module in model.modules():
        if any(is_partitioned(parameter) for parameter in module.parameters(recurse=False)):
            handles.append(module.register_forward_pre_hook(gather))
            handles.append(module.register_forward_hook(free, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_missing(parameter: nn.Parameter) -> bool:
    """Return True if the parameter is partitioned, and not gathered at present."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    status: Any = getattr(parameter, "ds_status", None)
    return status is ZeroParamStatus.NOT_AVAILABLE
