"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: W stays frozen, and s·B·A is trained on top of it.

peft's layers are injected into the model itself, so that `model.base_model`, its output layer and everything else that
the learner uses stay in place. A published version holds the factors alone; each rollout worker adds their product to
the weights that it loaded at its start (rollout/weights/lora_update.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cluster.core.config import LearnerConfig
from cluster.core.types import LEFT_FACTOR, RIGHT_FACTOR
from learner.model.model_files import checkpoint_shapes, matches, unmatched
from learner.model.partitioned import whole_shape
from learner.model.weight_sources import WeightSource, layout_of, parameter_source

_NAME = "default"
"""The name of the adapter: peft supports several at once."""


def add_adapters(model: PreTrainedModel, config: LearnerConfig) -> None:
    """Add an adapter to each targeted linear layer of `model`, and freeze all other weights. The model's output does
    not change yet.

    Raises:
        ValueError: if a target is not a linear layer of this model, or is its output layer.
    """
    assert config.lora_rank is not None
    adapter = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # a float is accepted too
        # Dropout would make the trained policy differ from the sampled one.
        lora_dropout=0.0,
        target_modules=_targeted(model, config.lora_target_modules),
    )
    inject_adapter_in_model(adapter, model, _NAME)


def _targeted(model: PreTrainedModel, targets: tuple[str, ...]) -> list[str]:
    """Return the full names of the layers that `targets` selects."""
    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    if targets == ("all-linear",):
        return linear
    if unknown := unmatched(targets, linear):
        known = sorted({name.rpartition(".")[2] for name in linear})
        raise ValueError(
            f"learner.lora_target_modules: {', '.join(unknown)} is not a linear layer of {type(model).__name__} "
            f"that can have an adapter: choose from {', '.join(known)}"
        )
    return [name for name in linear if any(matches(target, name) for target in targets)]


def adapter_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Return the layers that have an adapter, by their names in the model without adapters."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Turn `model` into the model that training began with, within the block: a frozen reference without memory cost.

    A model without adapters is not changed. Must not be used between a forward pass and its backward.
    """
    layers = adapter_layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def factor_sources(model: nn.Module) -> list[WeightSource]:
    """Return the trained update in float32: for each weight W of the checkpoint with an adapter two matrices, L [m, r]
    and R [r, n], so that W + L @ R is the current weight."""
    sources = []
    for name, layer in adapter_layers(model).items():
        a, b = _parameters(layer)
        # GPT-2 keeps its weights as [in, out].
        left, right = (a, b) if _is_transposed(layer) else (b, a)
        for suffix, parameter, part in ((LEFT_FACTOR, left, 0), (RIGHT_FACTOR, right, 1)):
            rows, columns = whole_shape(parameter)
            shape = (columns, rows) if _is_transposed(layer) else (rows, columns)
            sources.append(
                WeightSource(
                    layout_of(f"{name}.weight{suffix}", torch.float32, shape),
                    (a, b),
                    partial(_factor, layer, part),
                )
            )
    return sources


def _factor(layer: LoraLayer, part: int) -> Tensor:
    return _factors(layer)[part]


def _factors(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """Return L [m, r] and R [r, n] of one layer, float32."""
    a_RI, b_OR = (parameter.detach().float() for parameter in _parameters(layer))
    b_OR = b_OR * layer.scaling[_NAME]
    return (a_RI.T, b_OR.T) if _is_transposed(layer) else (b_OR, a_RI)


def _is_transposed(layer: LoraLayer) -> bool:
    return bool(getattr(layer, "fan_in_fan_out", False))


def _parameters(layer: LoraLayer) -> tuple[nn.Parameter, nn.Parameter]:
    """Return peft's A [r, in] and B [out, r]."""
    modules: tuple[Any, Any] = layer.lora_A[_NAME], layer.lora_B[_NAME]
    return modules[0].weight, modules[1].weight


def merged_sources(model: nn.Module) -> list[WeightSource]:
    """Return the sources of all weights under their names in the checkpoint, tied weights once, with the adapters
    merged. The sums are computed in float32 and rounded to the weight's own type."""
    layers = adapter_layers(model)
    sources = []
    for name, parameter in model.named_parameters():
        layer_name, _, rest = name.partition(".base_layer.")
        if layer_name not in layers:
            if ".lora_" not in name:
                sources.append(parameter_source(name, parameter))
            continue
        source = parameter_source(f"{layer_name}.{rest}", parameter)
        if rest == "weight":
            layer = layers[layer_name]
            source = replace(
                source,
                parameters=(parameter, *_parameters(layer)),
                compute=partial(_merged, layer, parameter),
            )
        sources.append(source)
    return sources


def _merged(layer: LoraLayer, parameter: nn.Parameter) -> Tensor:
    weight = parameter.detach()
    left, right = _factors(layer)
    return (weight.float() + left @ right).to(weight.dtype)


def saved_sources(model: nn.Module) -> list[WeightSource]:
    """Return the sources of the adapter alone, under the names that peft gives them in its files."""
    return [
        parameter_source(f"base_model.model.{name}.lora_{letter}.weight", parameter)
        for name, layer in adapter_layers(model).items()
        for letter, parameter in zip("AB", _parameters(layer), strict=True)
    ]


def refuse_unnamed(model: nn.Module, directory: Path) -> None:
    """Check that the checkpoint's files name every weight with an adapter: rollout workers find weights by these names.

    Raises:
        ValueError: if a weight with an adapter is not in the safetensors files of `directory` under its name.
    """
    shapes = checkpoint_shapes(directory)
    for name, layer in adapter_layers(model).items():
        if f"{name}.weight" not in shapes:
            raise ValueError(
                f"learner.lora_rank is set, but the safetensors files in {directory} have no {name}.weight, to which "
                f"{type(layer).__name__} adds: load and save the model once with transformers (save_pretrained)"
            )


def save_adapter(
    model: nn.Module, tensors: Mapping[str, Tensor], config: LearnerConfig, base: str, directory: Path
) -> None:
    """Write the adapter alone, in the format that `peft.PeftModel.from_pretrained(base_model, directory)` reads.

    Args:
        tensors: the tensors of `saved_sources`, on the CPU.
    """
    from safetensors.torch import save_file

    adapter = LoraConfig(
        r=config.lora_rank or 0,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        target_modules=sorted(adapter_layers(model)),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    directory.mkdir(parents=True, exist_ok=True)
    adapter.save_pretrained(str(directory))
    save_file(dict(tensors), directory / "adapter_model.safetensors", metadata={"format": "pt"})
