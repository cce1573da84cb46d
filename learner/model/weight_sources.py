"""The tensors that a model is published or exported as, each with the parameters from which it is computed.

A source knows name, type and shape of its tensor without them. So the tensors of a partitioned model can be described
at once, and computed one after the other, each while its own parameters are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cluster.core.types import WeightLayout
from learner.model.partitioned import whole_shape


@dataclass(frozen=True, slots=True)
class WeightSource:
    """One tensor."""

    layout: WeightLayout
    parameters: tuple[nn.Parameter, ...]
    """The parameters that must be whole while it is computed."""
    compute: Callable[[], Tensor]
    """Returns the tensor, detached."""


def layout_of(name: str, dtype: torch.dtype, shape: Iterable[int]) -> WeightLayout:
    """Return the layout of a tensor of torch."""
    return WeightLayout(name, str(dtype).removeprefix("torch."), tuple(shape))


def parameter_source(name: str, parameter: nn.Parameter) -> WeightSource:
    """Return the source of a parameter as it is."""
    return WeightSource(
        layout_of(name, parameter.dtype, whole_shape(parameter)), (parameter,), parameter.detach
    )


def plain_sources(model: nn.Module) -> list[WeightSource]:
    """Return the sources of all weights of a model without adapters. Tied weights appear once."""
    return [parameter_source(name, parameter) for name, parameter in model.named_parameters()]


def computed(sources: Iterable[WeightSource]) -> dict[str, Tensor]:
    """Return all tensors of a model that is whole, by name."""
    return {source.layout.name: source.compute() for source in sources}
