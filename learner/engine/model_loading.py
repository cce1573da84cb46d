"""Load a model's weights. With ZeRO 3 each rank keeps its part alone, and no rank ever holds the whole model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, core_model_loading

from learner.model.partitioned import is_partitioned


def load_model(model: str, dtype: torch.dtype, device: torch.device, **options: Any) -> PreTrainedModel:
    """Load the model in directory `model`, whole, onto `device`.

    Args:
        options: other arguments of transformers' `from_pretrained`.
    """
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model, dtype=dtype, **_attention_of(model) | options
    )
    return loaded.to(device)


def load_partitioned(
    model: str, dtype: torch.dtype, device: torch.device, config: Mapping[str, Any], **options: Any
) -> PreTrainedModel:
    """Load the model in directory `model`, and partition each parameter over the ranks as soon as it is loaded. A
    collective.

    A rank holds its part of the model and at most one whole parameter, and on the CPU those that may be tied; the files
    are mapped, not read. transformers' own way (`HfDeepSpeedConfig`) converts all weights before it partitions the
    first, and computes buffers such as the frequencies of rotary positions in the type of the weights.

    Args:
        config: DeepSpeed's configuration, with ZeRO stage 3.
        options: other arguments of transformers' `from_pretrained`.
    """
    partition = _Partitioner(dtype, device, config)
    with _each_parameter_partitioned(partition):
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, **_attention_of(model) | options
        )
    for parameter in loaded.parameters():
        if not is_partitioned(parameter):  # tied, or not in the files
            partition(parameter)
    for module in loaded.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return loaded


def _attention_of(model: str) -> dict[str, str]:
    """Return the argument with the attention that computes what the engines do, where transformers' choice does not.

    Its SDPA ignores a cap of the scores (Gemma 2).
    """
    text = AutoConfig.from_pretrained(model).get_text_config()
    return {"attn_implementation": "eager"} if getattr(text, "attn_logit_softcapping", None) else {}


def complete_partition(model: nn.Module) -> None:
    """Partition the parameters of a partitioned model that are still whole, such as adapters, and clear the padding of
    all. A collective, before DeepSpeed's engine is built.

    If the number of ranks does not divide a parameter, the parts of the last ranks are longer than what is left of it.
    DeepSpeed leaves there what the memory contained before, and the optimizer carries it along. It changes no result,
    but a NaN there would be taken for one of the weights.
    """
    partitioned: list[Any] = [p for p in model.parameters() if is_partitioned(p)]
    whole = [p for p in model.parameters() if not is_partitioned(p)]
    partitioned[0].convert_to_zero_parameters(param_list=whole)
    for parameter in [*partitioned, *whole]:
        length = parameter.ds_tensor.ds_numel
        left = parameter.ds_numel - length * parameter.ds_zero_partition_rank
        parameter.ds_tensor[max(0, left) :].zero_()


@contextmanager
def _each_parameter_partitioned(partition: _Partitioner) -> Iterator[None]:
    """Within the block, transformers partitions each parameter that it loads, except for those that may be tied: it
    compares their values at the end, and does not tie them if they differ.

    It reads, converts and sets the parameters in the same order on all ranks, one after the other if
    HF_DEACTIVATE_ASYNC_LOAD is set. Otherwise its threads would read ahead, as far as the whole model.
    """
    set_parameter: Callable[..., None] = core_model_loading.set_param_for_module

    def set_and_partition(model: PreTrainedModel, target_name: str, *arguments: Any) -> None:
        set_parameter(model, target_name, *arguments)
        path, _, name = target_name.rpartition(".")
        parameter = model.get_submodule(path)._parameters.get(name)
        tied = model.all_tied_weights_keys
        if target_name in tied or target_name in tied.values():
            return
        if parameter is not None and not parameter.is_meta:  # one of another shape was not set
            partition(parameter)

    variable = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    core_model_loading.set_param_for_module = set_and_partition
    try:
        yield
    finally:
        core_model_loading.set_param_for_module = set_parameter
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


class _Partitioner:
    """Partitions parameters one by one, with the rules of DeepSpeed's configuration."""

    def __init__(self, dtype: torch.dtype, device: torch.device, config: Mapping[str, Any]) -> None:
        self._dtype = dtype
        self._device = device
        self._config = config
        self._partitioned: Any = None
        """A parameter that is partitioned. DeepSpeed partitions others like it."""

    def __call__(self, parameter: nn.Parameter) -> None:
        # Always a copy: DeepSpeed writes into the tensor, whose pages may be those of the file.
        whole: Tensor = parameter.data.to(self._device, self._dtype, copy=True)
        parameter.data = whole
        if self._partitioned is None:
            import deepspeed

            deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=dict(self._config))
            self._partitioned = parameter
        else:
            self._partitioned.convert_to_zero_parameters(param_list=[parameter])
