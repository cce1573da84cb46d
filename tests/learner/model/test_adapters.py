"""Adapters change nothing until they are trained, and what is published, merged, saved or off is exactly them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from cluster.core.config import LearnerConfig
from learner.model.adapters import (
    adapter_layers,
    adapters_disabled,
    add_adapters,
    factor_sources,
    merged_sources,
    refuse_unnamed,
    save_adapter,
    saved_sources,
)
from learner.model.policy import Policy, sequence_logprobs
from learner.model.policy_setup import prepare_policy
from learner.model.weight_sources import computed, layout_of
from rollout.weights.lora_update import is_low_rank, updated_weights
from tests.builders import tiny_model

LORA = LearnerConfig(lora_rank=3, lora_alpha=7.0)
TOKENS = (1, 5, 2, 9, 4)
ARCHITECTURES = {
    "llama": {},
    "qwen2": {"tied": True},  # with biases
    "gpt2": {"tied": True},  # keeps its weights as [in, out]
    "gemma2": {"tied": True, "head_dim": 8, "final_logit_softcapping": 2.0},
}


def model_of(kind: str) -> PreTrainedModel:
    return tiny_model(kind, **ARCHITECTURES[kind]).float()


def adapted(kind: str, config: LearnerConfig = LORA) -> PreTrainedModel:
    model = model_of(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        add_adapters(model, config)
    return model


def trained(kind: str, config: LearnerConfig = LORA) -> PreTrainedModel:
    """With adapters that say something."""
    model = adapted(kind, config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def logprobs(model: PreTrainedModel) -> np.ndarray:
    return sequence_logprobs(Policy(model), TOKENS, torch.device("cpu"))


def save(model: PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


def load(directory: Path, weights: dict[str, torch.Tensor] | None = None) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    if weights is not None:
        named = dict(model.named_parameters())
        assert named.keys() == weights.keys()
        with torch.no_grad():
            for name, weight in weights.items():
                named[name].copy_(weight)
    return model.eval()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_at_first_nothing_is_changed_and_only_adapters_are_trained(kind: str) -> None:
    model = adapted(kind)
    np.testing.assert_allclose(logprobs(model), logprobs(model_of(kind)), atol=1e-6)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_is_merged_published_and_saved_is_what_was_trained(kind: str, tmp_path: Path) -> None:
    base = save(model_of(kind), tmp_path / "base")
    model = trained(kind)
    expected = logprobs(model)
    assert np.abs(expected - logprobs(model_of(kind))).max() > 0.01, "else nothing is shown here"

    merged = computed(merged_sources(model))
    np.testing.assert_allclose(logprobs(load(base, merged)), expected, atol=1e-5)

    published = computed(factor_sources(model))
    assert is_low_rank(published)
    assert not is_low_rank(merged)
    served = dict(updated_weights(base, published, torch.device("cpu")))
    for name, weight in merged.items():
        torch.testing.assert_close(served[name], weight, rtol=0, atol=0)

    save_adapter(model, computed(saved_sources(model)), LORA, str(base), tmp_path / "adapter")
    in_peft = PeftModel.from_pretrained(load(base), str(tmp_path / "adapter"))
    ids = torch.tensor([TOKENS])
    with torch.no_grad():
        torch.testing.assert_close(in_peft(ids).logits, load(base, merged)(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_switched_off_they_are_not_there(kind: str) -> None:
    model = trained(kind)
    before = logprobs(model)
    with adapters_disabled(model):
        np.testing.assert_allclose(logprobs(model), logprobs(model_of(kind)), atol=1e-6)
    np.testing.assert_array_equal(logprobs(model), before)
    assert any(parameter.requires_grad for parameter in model.parameters())
    assert all(".lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_switching_off_ends_with_the_block_also_when_that_fails() -> None:
    model = trained("llama")
    before = logprobs(model)
    with pytest.raises(ZeroDivisionError), adapters_disabled(model):
        raise ZeroDivisionError
    np.testing.assert_array_equal(logprobs(model), before)


def test_a_model_without_adapters_may_be_asked_too() -> None:
    model = model_of("llama")
    before = logprobs(model)
    with adapters_disabled(model):
        np.testing.assert_array_equal(logprobs(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (("q_proj",), 2),
        (("q_proj", "down_proj"), 4),
        (("layers.1.self_attn.q_proj",), 1),
        (("all-linear",), 14),
    ],
)
def test_the_named_layers_get_one(targets: tuple[str, ...], layers: int) -> None:
    model = adapted("llama", LORA.model_copy(update={"lora_target_modules": targets}))
    found = adapter_layers(model)
    assert len(found) == layers
    assert "lm_head" not in found


@pytest.mark.parametrize("stranger", ["query", "lm_head", "embed_tokens", "norm", "proj", ""])
def test_names_of_no_linear_layer_are_refused(stranger: str) -> None:
    config = LORA.model_copy(update={"lora_target_modules": ("q_proj", stranger)})
    with pytest.raises(
        ValueError, match=r"lora_target_modules: .* is not a linear layer of LlamaForCausalLM"
    ):
        adapted("llama", config)


def test_the_output_layer_and_shared_prefixes_are_found_behind_adapters() -> None:
    policy, packing = prepare_policy(adapted("llama"), LORA, max_context_tokens=100)
    assert policy.head is not None
    assert packing.prefix_sharing == "auto"


def test_adapters_of_weights_that_no_file_holds_are_refused(tmp_path: Path) -> None:
    save(model_of("llama"), tmp_path)
    model = adapted("llama")
    refuse_unnamed(model, tmp_path)
    with pytest.raises(ValueError, match=r"have no model\.layers\.0\.self_attn\.q_proj\.weight"):
        refuse_unnamed(model, tmp_path / "elsewhere")


def test_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    """Added up in float32: a worker that serves float32 gets what is not rounded at all."""
    save(model_of("llama"), tmp_path)
    model = trained("llama").bfloat16()
    published = computed(factor_sources(model))
    assert {tensor.dtype for tensor in published.values()} == {torch.float32}
    name = "model.layers.0.self_attn.q_proj.weight"
    factors = published[f"{name}.left"] @ published[f"{name}.right"]
    weight: Any = dict(model.named_parameters())[name.replace("weight", "base_layer.weight")]
    expected = (weight.float() + factors).bfloat16()
    torch.testing.assert_close(computed(merged_sources(model))[name], expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_layout_is_that_of_the_tensors(kind: str) -> None:
    """It is known before the parameters are gathered."""
    model = trained(kind)
    for source in (*factor_sources(model), *merged_sources(model), *saved_sources(model)):
        tensor = source.compute()
        assert source.layout == layout_of(source.layout.name, tensor.dtype, tensor.shape)
