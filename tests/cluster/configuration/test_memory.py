"""The estimate of memory agrees with what torch keeps, and follows the laws of what is divided and left out.

Activations are counted on meta tensors, which have sizes but no memory. What CUDA and vLLM reserve for themselves is
not shown here: no GPU was available.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.configuration.machine_checks import host_bytes
from cluster.configuration.memory import (
    GIB,
    LIVE_PARAMETERS,
    activation_bytes,
    cache_bytes_per_token,
    copied_bytes,
    engine_memory,
    layer_activation_bytes,
    learner_memory,
    learner_resident,
    offloaded_bytes,
    shared_memory,
)
from cluster.configuration.model_shape import ModelShape, UnknownShapeError, find_shape
from cluster.core.config import ACTOR_ROLES, ObjectiveConfig, RunConfig
from cluster.models.published import PUBLISHED
from learner.engine.deepspeed_engine import deepspeed_config
from tests.cluster.configuration.runs import run_config
from tests.shapes import CONFIGS

WIDTHS = {"float32": 4, "bfloat16": 2}
QWEN = ModelShape.from_config(CONFIGS["Qwen2.5-1.5B-Instruct"])


def meta_model(name: str, layers: int, dtype: str) -> Any:
    """Return the model with fewer layers, on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**CONFIGS[name], "num_hidden_layers": layers, "pad_token_id": None, "eos_token_id": None}
    config: Any = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).train()


@pytest.fixture
def counting_attention(monkeypatch: pytest.MonkeyPatch) -> str:
    """Register an attention that keeps what attention over shared prompts keeps: query, key and value of every head,
    the output of the prompt's and the responses' columns, and the output as a whole."""
    import torch
    import transformers.masking_utils as masking
    from transformers import AttentionInterface

    class Kept(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
            ctx.save_for_backward(query, key, value, torch.empty_like(query))
            return torch.empty_like(query)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return grad, None, None

    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return Kept.apply(query, key, value).transpose(1, 2).contiguous(), None  # type: ignore[no-untyped-call]

    AttentionInterface.register("counting", attention)
    masking.AttentionMaskInterface.register("counting", masking.sdpa_mask)
    monkeypatch.setattr(masking, "find_packed_sequence_indices", lambda positions: None)
    return "counting"


def kept_bytes(model: Any, tokens: int) -> int:
    """Return the bytes that a forward pass keeps for backward."""
    import torch

    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, tuple[int, Any]] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = (
                storage.nbytes(),
                tensor,
            )  # the reference keeps the address from being used again
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.base_model(input_ids=ids, use_cache=False)
    assert output is not None
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("name", CONFIGS)
def test_activations_are_what_torch_keeps(counting_attention: str, name: str, dtype: str) -> None:
    tokens = 64
    one, two = (meta_model(name, layers, dtype) for layers in (2, 3))
    for model in (one, two):
        model.set_attn_implementation(counting_attention)
    counted = (kept_bytes(two, tokens) - kept_bytes(one, tokens)) / tokens
    estimated = layer_activation_bytes(ModelShape.from_config(CONFIGS[name]), WIDTHS[dtype])
    tolerance = 0.1 if name.startswith("Gemma") else 0.01  # its soft-capping is not in the formula
    assert estimated == pytest.approx(counted, rel=tolerance)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_counted_exactly(name: str) -> None:
    layers = 2
    shape = ModelShape.from_config(CONFIGS[name] | {"num_hidden_layers": layers})
    assert shape.parameters == sum(
        parameter.numel() for parameter in meta_model(name, layers, "bfloat16").parameters()
    )


@pytest.mark.parametrize(
    ("hub_id", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
    ],
)
def test_published_models_are_known_before_they_are_here(
    tmp_path: Path, hub_id: str, parameters: int
) -> None:
    """The numbers are those that the hub shows for the models' files. A config.json on this machine comes first."""
    config = run_config(tmp_path, model={"source": hub_id})
    assert find_shape(config).parameters == parameters
    assert set(PUBLISHED) == {
        "Qwen/Qwen2.5-0.5B-Instruct",
        "Qwen/Qwen2.5-1.5B-Instruct",
        "Qwen/Qwen2.5-7B-Instruct",
    }


@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("Gemma")])
def test_the_parameters_of_adapters_are_counted_exactly(name: str) -> None:
    from cluster.core.config import LearnerConfig
    from learner.model.adapters import add_adapters

    model = meta_model(name, 2, "bfloat16")
    add_adapters(model, LearnerConfig(lora_rank=8))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    shape = ModelShape.from_config(CONFIGS[name] | {"num_hidden_layers": 2})
    assert shape.adapter_parameters(8) == trained


def run(learner: dict[str, Any] | None = None, dtype: str = "bfloat16", **rollout: Any) -> RunConfig:
    return run_config(
        Path(),
        model={"dtype": dtype, "max_context_tokens": 4096},
        rollout={"gpus_per_worker": 1, "max_response_tokens": 1024, "prompts_per_step": 32} | rollout,
        learner={"gpus_per_rank": 1} | (learner or {}),
    )


def total(config: RunConfig, shape: ModelShape = QWEN) -> float:
    return learner_memory(config, shape).total


settings = st.fixed_dictionaries(
    {
        "zero_stage": st.integers(0, 3),
        "ranks": st.sampled_from([1, 2, 4, 8]),
        "gradient_checkpointing": st.booleans(),
        "micro_batch_tokens": st.sampled_from([1024, 4096, 16384, 65536]),
        "gpus_per_rank": st.sampled_from([0, 1]),
    }
)
saving: list[Callable[[dict[str, Any]], dict[str, Any]]] = [
    lambda learner: {"gradient_checkpointing": True},
    lambda learner: {"micro_batch_tokens": learner["micro_batch_tokens"] // 2},
    lambda learner: {"ranks": learner["ranks"] * 2},
    lambda learner: {"offload": "optimizer"} if learner["zero_stage"] >= 2 else {},
    lambda learner: {"lora_rank": 8},
]


@given(learner=settings, dtype=st.sampled_from(["float32", "bfloat16"]), change=st.sampled_from(saving))
def test_what_saves_memory_never_adds_to_the_estimate(
    learner: dict[str, Any], dtype: str, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    before, after = (total(run(settings, dtype)) for settings in (learner, learner | change(learner)))
    assert after <= before


def test_each_zero_stage_needs_less_than_the_one_before_it() -> None:
    """This holds for large models on several ranks. Small ones do not gain what ZeRO's buffers take."""
    large = ModelShape.from_config(CONFIGS["Qwen2.5-7B-Instruct"])
    totals = [
        total(run({"zero_stage": stage, "ranks": 8, "micro_batch_tokens": 4096}), large) for stage in range(4)
    ]
    assert totals == sorted(totals, reverse=True)


@given(learner=settings, dtype=st.sampled_from(["float32", "bfloat16"]))
def test_the_parts_are_positive_and_named_once(learner: dict[str, Any], dtype: str) -> None:
    config = run(learner, dtype)
    for memory in (learner_memory(config, QWEN), engine_memory(config, QWEN), shared_memory(config, QWEN)):
        names = [part.name for part in memory.parts]
        assert len(set(names)) == len(names)
        assert all(part.size > 0 for part in memory.parts)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_estimate_has_the_buffers_that_deepspeed_gets(stage: int) -> None:
    """The number of live parameters is DeepSpeed's default, which deepspeed_config leaves alone."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    config = run({"zero_stage": stage, "ranks": 2})
    zero = DeepSpeedZeroConfig(**deepspeed_config(config.learner, "bfloat16")["zero_optimization"])
    large = ModelShape.from_config(CONFIGS["Qwen2.5-7B-Instruct"])
    parts = {part.name: part.size for part in learner_memory(config, large).parts}
    if stage == 3:
        assert zero.max_live_parameters == LIVE_PARAMETERS
        assert parts["gathered weights"] == 2 * zero.max_live_parameters
        assert parts["kept bucket"] == 4 * zero.reduce_bucket_size, "gradients travel in float32"
    else:
        assert parts["bucket"] == 2 * zero.reduce_bucket_size


def test_the_gradient_of_a_large_output_layer_travels_in_float32() -> None:
    """It exists beside all activations. That of a tied one is complete only when they are gone."""
    tied, untied = (
        {part.name: part.size for part in learner_memory(run({"zero_stage": 2, "ranks": 8}), shape).parts}
        for shape in (QWEN, ModelShape.from_config(CONFIGS["Qwen2.5-7B-Instruct"]))
    )
    assert untied["copy of the bucket"] == 4 * 152064 * 3584
    assert tied["copy of the bucket"] == 4 * 100_000_000


@pytest.mark.parametrize("transport", ["pull", "broadcast"])
def test_rank_0_keeps_a_copy_of_a_version_in_host_memory(transport: str) -> None:
    """Only if its weights are on a GPU. tests/learner/weights/test_pull.py shows what the copy takes."""
    config = run(weight_transport=transport)
    assert copied_bytes(config, QWEN) == pytest.approx(1.15 * 2 * QWEN.parameters)
    assert host_bytes(config, QWEN, ACTOR_ROLES) == copied_bytes(config, QWEN) + 2 * QWEN.parameters
    assert copied_bytes(run({"gpus_per_rank": 0}), QWEN) == 0
    assert copied_bytes(run({"lora_rank": 16}), QWEN) < 0.1 * copied_bytes(config, QWEN)


def test_a_reference_is_where_the_weights_are() -> None:
    """Under ZeRO 3 with offloaded parameters both are in host memory, and on the GPU in every other case."""
    for offload in ("none", "optimizer", "parameters"):
        config = run({"zero_stage": 3, "ranks": 2, "offload": offload})
        compared = config.model_copy(update={"objective": ObjectiveConfig(kl_coefficient=0.1)})
        on_gpu = learner_memory(compared, QWEN).total - learner_memory(config, QWEN).total
        on_host = offloaded_bytes(compared, QWEN) - offloaded_bytes(config, QWEN)
        expected = (0, QWEN.parameters) if offload == "parameters" else (QWEN.parameters, 0)
        assert (on_gpu, on_host) == pytest.approx(expected)


def test_a_learner_of_sleeping_engines_does_not_keep_gathered_weights() -> None:
    """The rank frees them after it has published, but not the gradients and the bucket of ZeRO 3."""
    config = run({"zero_stage": 3, "ranks": 2})
    parts = {part.name: part.size for part in learner_memory(config, QWEN).parts}
    kept = ("weights", "float32 copy", "moments", "gradients", "kept bucket", "process")
    assert learner_resident(config, QWEN) == pytest.approx(sum(parts[name] for name in kept))


def test_the_known_cases_of_the_default_micro_batch() -> None:
    """Activations of 16,384 tokens without checkpointing are 44 and 96 GiB, counted on meta tensors for attention that
    keeps its output once and does not repeat keys and values."""
    for name, gib in (("Qwen2.5-1.5B-Instruct", 44), ("Qwen2.5-7B-Instruct", 96)):
        shape = ModelShape.from_config(CONFIGS[name])
        config = run({"micro_batch_tokens": 16384})
        assert activation_bytes(config, shape) / GIB == pytest.approx(gib, rel=0.15)


def test_a_budget_of_responses_counts_where_they_do_not_fill_a_micro_batch() -> None:
    sizes = {"prompts_per_step": 1, "responses_per_prompt": 2}
    plain, budgeted = (
        activation_bytes(run({"micro_batch_tokens": 10**6}, **sizes, **budget), QWEN)
        for budget in ({}, {"adaptive_budget": 7})
    )
    assert budgeted == pytest.approx(7 / 2 * plain)


def test_the_state_of_mixed_precision_is_18_bytes_per_parameter() -> None:
    """Weights 2, float32 copy 4, moments 8, gradients 4 (ZeRO paper, arXiv 1910.02054, and float32 accumulation)."""
    parts = {part.name: part.size for part in learner_memory(run({"zero_stage": 2}), QWEN).parts}
    state = sum(parts[name] for name in ("weights", "float32 copy", "moments", "gradients"))
    assert state / QWEN.parameters == pytest.approx(18)


def test_the_cache_of_a_token() -> None:
    """Keys and values of 28 layers with 2 heads of 128 in bfloat16. Two GPUs hold one head each; four hold copies."""
    assert cache_bytes_per_token(run(), QWEN) == 2 * 28 * 2 * 128 * 2
    by_size = [cache_bytes_per_token(run(tensor_parallel_size=size), QWEN) for size in (1, 2, 4)]
    assert by_size == [by_size[0], by_size[0] / 2, by_size[0] / 2]


def test_a_published_version_of_adapters_is_small() -> None:
    whole, adapters = (shared_memory(run(learner), QWEN).total for learner in ({}, {"lora_rank": 16}))
    assert whole == 4 * 2 * QWEN.parameters
    assert adapters < 0.1 * whole


@pytest.mark.parametrize(
    ("config", "reason"),
    [({"num_experts": 8}, "mixture of experts"), ({"hidden_size": None}, "has no hidden_size")],
)
def test_other_models_are_not_estimated(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnknownShapeError, match=reason):
        ModelShape.from_config(CONFIGS["Mistral-7B"] | config)


def test_a_model_that_is_not_here_is_not_estimated(tmp_path: Path) -> None:
    cache = {"max_context_tokens": 64, "cache_directory": str(tmp_path)}
    with pytest.raises(UnknownShapeError, match="not built yet"):
        find_shape(run_config(tmp_path, model=cache))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnknownShapeError, match="cannot be read"):
        find_shape(run_config(tmp_path, model=cache | {"source": str(tmp_path)}))
