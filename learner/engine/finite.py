"""Checks that what the learner has computed is finite, before any of it is published or saved.

A NaN in the weights stays there, so one that was saved would replace the last good checkpoint sooner or later. Each
rank checks its own part:

    before an optimizer step    its loss
    after an optimizer step     the norm of the gradient, and whether DeepSpeed has skipped the step
    before a publication        its weights, and its log-probabilities of the probe
    before a checkpoint         its weights, and the optimizer's state

Each check is a collective: what one rank finds is raised in all of them, so that no rank continues or waits for the
others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from torch import Tensor


class NonFiniteError(RuntimeError):
    """A number that must be finite is NaN or infinite. The message says which one, in one line."""


_STATISTICS = {
    "loss": "the loss",
    "grad_norm": "the gradient norm",
    "positive_grad_norm": "the gradient norm of the positive advantages",
    "negative_grad_norm": "the gradient norm of the negative advantages",
}
"""The statistics of an optimizer step that must be finite."""


def refuse_non_finite_step(statistics: Mapping[str, float], step: int, skipped_steps: int = 0) -> None:
    """Raise if DeepSpeed has skipped an optimizer step, or if its loss or a gradient norm is not finite. A collective.

    Args:
        statistics: Those of `_STATISTICS` that are known.
        step: The number of the step in its batch, from 1.
        skipped_steps: If DeepSpeed has left the weights as they were, the number of steps that it has skipped in this
            run; otherwise 0.

    Raises:
        NonFiniteError: if any of them is not, on any rank.
    """
    fault = None
    if skipped_steps:
        fault = (
            f"DeepSpeed skipped optimizer step {step} of the batch because a gradient was NaN or infinite (skipped "
            f"steps of this run: {skipped_steps})"
        )
    for name, text in _STATISTICS.items():
        if fault is None and not math.isfinite(statistics.get(name, 0.0)):
            fault = f"{text} of optimizer step {step} of the batch is {statistics[name]}"
    _refuse_on_all_ranks(fault)


def refuse_non_finite_probe(logprobs: Sequence[np.ndarray]) -> None:
    """Raise if a rank's log-probability of a token of the probe is not finite. A collective.

    Raises:
        NonFiniteError: if any of them is not, on any rank.
    """
    finite = all(np.isfinite(each).all() for each in logprobs)
    _refuse_on_all_ranks(
        None if finite else "the learner's log-probability of a token of the probe is NaN or infinite"
    )


def refuse_non_finite_weights(engine: DeepSpeedEngine) -> None:
    """Raise if a weight in a rank's part of the model is not finite. A collective.

    Raises:
        NonFiniteError: naming the weights, on all ranks.
    """
    _refuse_on_all_ranks(_fault(_weights(engine), "the weights"))


def refuse_non_finite_state(engine: DeepSpeedEngine) -> None:
    """Raise if a weight or a part of the optimizer's state on a rank is not finite. A collective.

    Raises:
        NonFiniteError: naming them, on all ranks.
    """
    refuse_non_finite_weights(engine)
    _refuse_on_all_ranks(_fault(_optimizer_state(engine), "the tensors of the optimizer"))


def _refuse_on_all_ranks(fault: str | None) -> None:
    """Raise on every rank if any rank has found a fault. The ranks share one flag, and texts only if it is set."""
    from torch import distributed, int32, tensor

    faults: list[str | None] = [fault]
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        flag = tensor(fault is not None, dtype=int32, device=device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        if flag.item():
            faults = [None] * distributed.get_world_size()
            distributed.all_gather_object(faults, fault)
    if any(faults):
        raise NonFiniteError("; ".join(dict.fromkeys(each for each in faults if each)))


def _weights(engine: DeepSpeedEngine) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of the model. Under ZeRO 3 these are the parts that the rank holds."""
    model: Any = engine.module.model
    for name, parameter in model.named_parameters():
        yield name, getattr(parameter, "ds_tensor", parameter).detach()


def _optimizer_state(engine: DeepSpeedEngine) -> Iterator[tuple[str, Tensor]]:
    """Yield the float32 copies of the weights that the optimizer has, and its moments."""
    import torch

    optimizer: Any = engine.optimizer
    optimizer = getattr(optimizer, "optimizer", optimizer)  # ZeRO's optimizer wraps torch's
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield "float32 weights", parameter.detach()
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                yield name, value


def _fault(tensors: Iterable[tuple[str, Tensor]], what: str) -> str | None:
    """Return which of the tensors are not finite, or None."""
    import torch

    checked = [(name, tensor) for name, tensor in tensors if tensor.numel() and tensor.is_floating_point()]
    # The extremes are NaN if any element is. They take one pass at the speed of memory, without a copy of the tensor.
    extremes = [torch.stack(torch.aminmax(tensor)).float() for _, tensor in checked]
    by_device: dict[torch.device, list[int]] = {}
    for index, value in enumerate(extremes):
        by_device.setdefault(value.device, []).append(index)
    found: set[str] = set()
    for indices in by_device.values():  # one synchronization for each device
        finite = torch.stack([extremes[index] for index in indices]).isfinite().all(dim=1).tolist()
        found |= {checked[index][0] for index, good in zip(indices, finite, strict=True) if not good}
    if not found:
        return None
    names = sorted(found)
    others = f" and {len(names) - 3} others" if len(names) > 3 else ""
    return f"{what} contain NaN or infinity: {', '.join(names[:3])}{others}"
