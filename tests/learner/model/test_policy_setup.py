"""The tests of a model before training: by its configuration, and on the model itself."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.core.config import LearnerConfig
from cluster.core.types import TrainingSample
from learner.model.batching import MicroBatch, shard
from learner.model.policy import Policy, TokenBatch, response_logprobs
from learner.model.policy_setup import forward_cost, prefix_sharing_fault, prepare_policy
from learner.model.prefix_support import prefix_obstacle
from learner.model.shared_prefix import ATTENTION
from tests.builders import tiny_model

AUTO, ON, OFF = (LearnerConfig(prefix_sharing=sharing) for sharing in ("auto", "on", "off"))

UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "mistral": ({"sliding_window": 4}, "last 4 tokens"),
    "qwen2": ({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, "last 4 tokens"),
    "mamba": ({}, "linear_attention"),
    "bloom": ({}, "ALiBi"),
    "gptj": ({"rotary_dim": 4}, "no attention function but its own"),
}
"""Models that cannot share prompts, and the reason. All but the last are recognized by their configuration."""


@pytest.mark.parametrize("kind", UNFIT)
def test_a_model_that_cannot_share_prompts_is_refused_if_sharing_is_on(kind: str) -> None:
    settings, reason = UNFIT[kind]
    with pytest.raises(ValueError, match=r"learner\.prefix_sharing is on, but") as error:
        prepare_policy(tiny_model(kind, **settings), ON, max_context_tokens=100)
    assert reason in str(error.value)


@pytest.mark.parametrize("kind", UNFIT)
def test_with_auto_one_line_gives_the_reason_and_sharing_is_off(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings, reason = UNFIT[kind]
    model = tiny_model(kind, **settings)
    with caplog.at_level(logging.INFO, "learner.model.policy_setup"):
        policy, packing = prepare_policy(model, AUTO, max_context_tokens=100)
    (line,) = [record.message for record in caplog.records if record.name == "learner.model.policy_setup"]
    assert reason in line
    assert packing.prefix_sharing == "off"
    assert model.config._attn_implementation != ATTENTION
    assert_scores_as_the_model_does(policy)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neox", "gpt2", "opt", "phi", "olmo"])
def test_a_model_that_can_share_prompts_logs_nothing(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"ffn_dim": 32, "word_embed_proj_dim": 16} if kind == "opt" else {}
    with caplog.at_level(logging.INFO, "learner.model.policy_setup"):
        policy, packing = prepare_policy(tiny_model(kind, **settings), AUTO, max_context_tokens=100)
    assert caplog.messages == []
    assert packing.prefix_sharing == "auto"
    assert policy.head is not None
    assert_scores_as_the_model_does(policy)


def test_off_leaves_the_model_alone() -> None:
    model = tiny_model("llama")
    _, packing = prepare_policy(model, OFF, max_context_tokens=None)
    assert packing.prefix_sharing == "off"
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gemma2", {"final_logit_softcapping": 2.0, "attn_logit_softcapping": None, "head_dim": 8}),
        ("cohere", {"logit_scale": 0.5}),
        ("granite", {"logits_scaling": 4.0}),
    ],
)
def test_logits_that_are_capped_or_scaled_are_left_to_the_model(
    kind: str, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "learner.model.policy_setup"):
        policy, _ = prepare_policy(tiny_model(kind, **settings), AUTO, max_context_tokens=100)
    (line,) = caplog.messages
    assert "by more than one linear layer" in line
    assert policy.head is None
    assert_scores_as_the_model_does(policy)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_passes_that_differ_by_rounding_hide_no_plain_output_layer(kind: str) -> None:
    """On GPUs sums over experts have no fixed order. Ranks that found different answers would wait for each other."""
    model = tiny_model(kind)

    def round_differently(*_: Any) -> None:
        with torch.no_grad():
            model.get_input_embeddings().weight[:, 0] += 1e-9

    model.base_model.register_forward_pre_hook(round_differently)
    assert Policy(model).head is not None


def assert_scores_as_the_model_does(policy: Policy) -> None:
    prompt, responses = [1, 2, 3], [[4, 5, 6, 7], [8]]
    samples = [
        TrainingSample(np.array(prompt), np.array(response), np.zeros(len(response), np.float32), 0.0, 0.0)
        for response in responses
    ]
    batch = TokenBatch.from_samples(samples, torch.device("cpu"))
    with torch.no_grad():
        logprobs, entropy = response_logprobs(policy, batch, 0.5)
        for i, response in enumerate(responses):
            logits = policy.model(torch.tensor([prompt + response]), use_cache=False).logits[0, 2:-1]
            expected = torch.distributions.Categorical(logits=logits / 0.5)
            count = len(response)
            close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5, check_dtype=False)
            close(logprobs[i, :count], expected.log_prob(torch.tensor(response)))
            close(entropy[i, :count], expected.entropy())


@pytest.mark.parametrize(
    ("kind", "dropout"),
    [("gpt2", {"attn_pdrop": 0.5, "resid_pdrop": 0.5}), ("llama", {"attention_dropout": 0.5})],
)
@pytest.mark.parametrize("sharing", ["on", "off"])
def test_nothing_is_dropped_in_training(kind: str, dropout: dict[str, float], sharing: Any) -> None:
    """The policy that learns is the one that samples."""
    model = tiny_model(kind, **dropout).train()
    policy, packing = prepare_policy(model, LearnerConfig(prefix_sharing=sharing), max_context_tokens=100)
    assert policy.model.training
    samples = [
        TrainingSample(np.array([1, 2]), np.array(response), np.zeros(len(response), np.float32), 0.0, 0.0)
        for response in ([3, 4, 5], [6, 7])
    ]
    (micro_batches,) = shard(samples, 1, packing)
    batch = TokenBatch.from_micro_batch(micro_batches[0], torch.device("cpu"))
    first, second = (response_logprobs(policy, batch, 1.0)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_the_test_runs_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """This shows that all of its inputs are made on the model's device, and not a computation on a GPU."""
    model, elsewhere = tiny_model("llama"), torch.device("cpu", 0)
    monkeypatch.setattr(type(model), "device", property(lambda _: elsewhere))
    seen: list[torch.device] = []
    build = TokenBatch.from_micro_batch

    def recorded(micro_batch: MicroBatch, device: torch.device) -> TokenBatch:
        seen.append(device)
        return build(micro_batch, torch.device("cpu"))

    monkeypatch.setattr(TokenBatch, "from_micro_batch", recorded)
    prepare_policy(model, AUTO, max_context_tokens=100)
    assert seen
    assert all(device.index == elsewhere.index for device in seen)


def test_costs_are_counted_from_the_models_sizes() -> None:
    """2 layers × 16 wide × 4 per pair, against 2 × the parameters between embedding and output layer."""
    model = tiny_model("llama", tied=False)
    between = sum(p.numel() for p in model.model.layers.parameters()) + model.model.norm.weight.numel()
    assert forward_cost(model).per_pair == pytest.approx(2 * 16 * 4 / (2 * between))
    assert forward_cost(tiny_model("llama", tied=True)).per_pair == forward_cost(model).per_pair


def test_an_attention_that_differs_from_the_models_own_is_found() -> None:
    """Even if shared prompts agree with it: transformers hands a cap of the scores to every attention function."""
    model = tiny_model("gemma2", head_dim=8, attn_logit_softcapping=0.5)
    model.set_attn_implementation("eager")
    fault = prefix_sharing_fault(model, Policy(model))
    assert fault is not None
    assert "another attention of its own" in fault
    assert model.config._attn_implementation == "eager"


# --- By the configuration alone


@pytest.mark.parametrize(
    ("known", "context", "fit"),
    [
        ({"model_type": "llama"}, 100, True),
        ({"model_type": "llama", "sliding_window": None}, 100, True),
        ({"model_type": "mistral", "sliding_window": 100}, 100, True),
        ({"model_type": "mistral", "sliding_window": 99}, 100, False),
        ({"model_type": "mistral", "sliding_window": 99}, None, False),
        ({"model_type": "qwen2", "sliding_window": 99, "use_sliding_window": False}, 100, True),
        ({"model_type": "qwen3", "sliding_window": 99, "layer_types": ["full_attention"] * 2}, 100, True),
        ({"model_type": "gemma3", "sliding_window": 99, "layer_types": ["sliding_attention"]}, 100, False),
        ({"model_type": "gemma3", "text_config": {"sliding_window": 99}}, 100, False),
        ({"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]}, 100, False),
        ({"model_type": "llama4", "attention_chunk_size": 8192}, 100, False),
        ({"model_type": "falcon", "alibi": True}, 100, False),
        ({"model_type": "falcon", "alibi": False}, 100, True),
        ({"model_type": "falcon_h1", "mamba_d_state": 16}, 100, False),
        ({"model_type": "t5", "is_encoder_decoder": True}, 100, False),
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, 100, False),
        ({"model_type": "gemma2", "attn_logit_softcapping": None}, 100, True),
        ({}, None, True),
    ],
)
def test_what_a_configuration_tells(known: dict[str, Any], context: int | None, fit: bool) -> None:
    assert (prefix_obstacle(known, context) is None) == fit


def test_a_saved_configuration_tells_the_same(tmp_path: Path) -> None:
    """`check` reads the file, the learner the model."""
    for kind, (settings, _) in UNFIT.items():
        tiny_model(kind, **settings).config.save_pretrained(tmp_path / kind)
        known = json.loads((tmp_path / kind / "config.json").read_text())
        assert (prefix_obstacle(known, 100) is None) == (kind == "gptj"), kind
