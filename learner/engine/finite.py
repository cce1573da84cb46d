"""Checks that what the learner has computed is finite, before any of it is published or saved.

A NaN in the weights stays there, so one that was saved would replace the last good checkpoint sooner or later. Each
rank checks its own part:

    after an optimizer step     its loss, and the norm of the gradient
    before a publication        its weights
    before a checkpoint         its weights, and the optimizer's state
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from torch import Tensor


class NonFiniteError(RuntimeError):
    """A number that must be finite is NaN or infinite. The message says which one, in one line."""


def refuse_non_finite_step(statistics: Mapping[str, float], step: int, skipped: bool = False) -> None:
    """Raise if the loss or the gradient norm of an optimizer step is not finite, or if DeepSpeed has skipped the step.

    Args:
        statistics: "loss", and "grad_norm" if it is known.
        step: The number of the step in its batch, from 1.
        skipped: True if DeepSpeed has found an infinite gradient and left the weights as they were.

    Raises:
        NonFiniteError: if any of them is not.
    """
    named = {"loss": "the loss", "grad_norm": "the gradient norm"}
    for name, text in named.items():
        if name in statistics and not math.isfinite(statistics[name]):
            raise NonFiniteError(f"{text} of optimizer step {step} of the batch is {statistics[name]}")
    if skipped:
        raise NonFiniteError(
            f"DeepSpeed skipped optimizer step {step} of the batch because a gradient was infinite"
        )


def refuse_non_finite_weights(engine: DeepSpeedEngine) -> None:
    """Raise if a weight in this rank's part of the model is not finite.

    Raises:
        NonFiniteError: naming the weights.
    """
    _refuse(_weights(engine), "the weights")


def refuse_non_finite_state(engine: DeepSpeedEngine) -> None:
    """Raise if a weight or a part of the optimizer's state on this rank is not finite.

    Raises:
        NonFiniteError: naming them.
    """
    refuse_non_finite_weights(engine)
    _refuse(_optimizer_state(engine), "the tensors of the optimizer")


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


def _refuse(tensors: Iterable[tuple[str, Tensor]], what: str) -> None:
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
    if found:
        names = sorted(found)
        others = f" and {len(names) - 3} others" if len(names) > 3 else ""
        raise NonFiniteError(f"{what} contain NaN or infinity: {', '.join(names[:3])}{others}")
