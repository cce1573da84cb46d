"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: W stays frozen, and s·B·A is trained on top of it.

peft's layers are injected into the model itself, so that `model.base_model`, its output layer and everything else that
the learner uses stay in place. A published version holds the factors alone; each rollout worker adds their product to
the weights that it loaded at its start (rollout/weights/lora_update.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cluster.core.config import LearnerConfig
from cluster.core.types import LEFT_FACTOR, RIGHT_FACTOR
from learner.model.model_files import checkpoint_shapes, matches, unmatched

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


def low_rank_factors(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained update in float32: for each weight W of the checkpoint with an adapter two matrices, L [m, r]
    and R [r, n], so that W + L @ R is the current weight. Under ZeRO 3 the adapters must have been gathered."""
    factors: dict[str, Tensor] = {}
    for name, layer in adapter_layers(model).items():
        left, right = _factors(layer)
        factors[f"{name}.weight{LEFT_FACTOR}"] = left
        factors[f"{name}.weight{RIGHT_FACTOR}"] = right
    return factors


def _factors(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """Return L [m, r] and R [r, n] of one layer, float32."""
    a_RI, b_OR = _matrices(layer)
    a_RI, b_OR = a_RI.float(), b_OR.float() * layer.scaling[_NAME]
    # GPT-2 keeps its weights as [in, out].
    return (a_RI.T, b_OR.T) if getattr(layer, "fan_in_fan_out", False) else (b_OR, a_RI)


def _matrices(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """Return peft's A [r, in] and B [out, r]."""
    modules: tuple[Any, Any] = layer.lora_A[_NAME], layer.lora_B[_NAME]
    return modules[0].weight.detach(), modules[1].weight.detach()


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return all weights under their names in the checkpoint, tied weights once, with the adapters merged.

    The sums are computed in float32 and rounded to the weight's own type. Without adapters the weights are returned
    unchanged. Under ZeRO 3 all parameters must have been gathered.
    """
    layers = adapter_layers(model)
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        layer_name, _, rest = name.partition(".base_layer.")
        if layer_name not in layers:
            if ".lora_" not in name:
                weights[name] = parameter.detach()
            continue
        weight = parameter.detach()
        if rest == "weight":
            left, right = _factors(layers[layer_name])
            weight = (weight.float() + left @ right).to(weight.dtype)
        weights[f"{layer_name}.{rest}"] = weight
    return weights


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


def save_adapter(model: nn.Module, config: LearnerConfig, base: str, directory: Path) -> None:
    """Write the adapter alone, in the format that `peft.PeftModel.from_pretrained(base_model, directory)` reads. Under
    ZeRO 3 the adapters must have been gathered."""
    from safetensors.torch import save_file

    layers = adapter_layers(model)
    tensors = {}
    for name, layer in layers.items():
        for letter, matrix in zip("AB", _matrices(layer), strict=True):
            tensors[f"base_model.model.{name}.lora_{letter}.weight"] = matrix.cpu().clone()
    adapter = LoraConfig(
        r=config.lora_rank or 0,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        target_modules=sorted(layers),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    directory.mkdir(parents=True, exist_ok=True)
    adapter.save_pretrained(str(directory))
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
