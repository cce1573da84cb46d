"""Responses that share their prompt's computation have the log-probabilities and gradients that each has alone."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cluster.core.config import LearnerConfig
from cluster.core.types import TrainingSample
from learner.model import attention_layouts, shared_prefix
from learner.model.attention_kernels import EFFICIENT, FLASH, packed_attention
from learner.model.batching import Bundle, MicroBatch, Packing, shard
from learner.model.policy import Policy, TokenBatch, response_logprobs
from learner.model.policy_setup import prepare_policy
from learner.model.shared_prefix import ATTENTION
from tests.builders import tiny_model
from tests.learner.model.packed_operators import operators_on_cpu

CPU = torch.device("cpu")
VOCABULARY = 32
ARCHITECTURES = {
    "llama": {},
    "llama, tied": {"tied": True},
    "qwen2": {},
    "qwen2, tied": {"tied": True},
    "gpt2": {"tied": True},  # learned positions
    "gpt_neox": {},
    "phi": {},  # an output layer with a bias
    "gemma2": {"head_dim": 8, "sliding_window": 64, "attn_logit_softcapping": None},  # capped logits
}


@pytest.fixture(scope="module", autouse=True, params=["rows", "flash", "efficient"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Attend in the way of CPUs, and in those of GPUs, whose operators have a substitute here."""
    if request.param == "rows":
        yield request.param
        return
    with operators_on_cpu(), packed_attention({"flash": FLASH, "efficient": EFFICIENT}[request.param]):
        yield request.param


@pytest.fixture(scope="module", params=ARCHITECTURES)
def policy(request: pytest.FixtureRequest) -> Policy:
    """In float64."""
    return sharing_policy(request.param)


def sharing_policy(name: str) -> Policy:
    model = tiny_model(name.partition(",")[0], **ARCHITECTURES[name])
    policy, packing = prepare_policy(model, LearnerConfig(prefix_sharing="on"), max_context_tokens=64)
    assert packing.prefix_sharing == "on"
    return policy


def make_bundle(prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> Bundle:
    """Each response has an advantage and a scale of its own."""
    return tuple(
        TrainingSample(
            np.array(prompt), np.array(ids), np.full(len(ids), -3.0, np.float32), (-1.5) ** i, 1 / (3 + i)
        )
        for i, ids in enumerate(responses)
    )


TOKENS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=7)
BUNDLES = st.lists(
    st.builds(make_bundle, TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=3
).map(tuple)


def split(micro_batch: MicroBatch) -> list[MicroBatch]:
    """Each response in a micro-batch of its own."""
    return [((sample,),) for bundle in micro_batch for sample in bundle]


def scores(policy: Policy, micro_batch: MicroBatch) -> list[Tensor]:
    """Log-probabilities and entropies of each response, [2, T], with gradient."""
    batch = TokenBatch.from_micro_batch(micro_batch, CPU)
    both_2BT = torch.stack(response_logprobs(policy, batch, 0.7, entropy_gradient=True))
    return [both_2BT[:, b, mask_T] for b, mask_T in enumerate(batch.response_mask_BT)]


def loss_and_gradient(policy: Policy, micro_batches: Sequence[MicroBatch]) -> tuple[float, Tensor]:
    """Return both for a loss in which every log-probability and every entropy has a weight of its own."""
    scored = [each for micro_batch in micro_batches for each in scores(policy, micro_batch)]
    samples = [sample for micro_batch in micro_batches for bundle in micro_batch for sample in bundle]
    loss = torch.stack(
        [
            sample.scale * (sample.advantage * logprobs.exp() + entropies.sin()).sum()
            for sample, (logprobs, entropies) in zip(samples, scored, strict=True)
        ]
    ).sum()
    gradients = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
    flat = [g.flatten() for g in gradients if g is not None]
    return loss.item(), torch.cat(flat)


@settings(max_examples=8, deadline=None)
@given(micro_batch=BUNDLES)
def test_each_response_scores_as_alone(policy: Policy, micro_batch: MicroBatch) -> None:
    with torch.no_grad():
        together = scores(policy, micro_batch)
        alone = [scores(policy, each)[0] for each in split(micro_batch)]
    for ours, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=8, deadline=None)
@given(micro_batch=BUNDLES)
def test_loss_and_gradient_are_those_of_each_response_alone(policy: Policy, micro_batch: MicroBatch) -> None:
    loss, gradient = loss_and_gradient(policy, [micro_batch])
    expected_loss, expected_gradient = loss_and_gradient(policy, split(micro_batch))
    assert loss == pytest.approx(expected_loss, rel=1e-9, abs=1e-12)
    assert expected_gradient.norm() > 0
    # RMS norms of transformers compute in float32 whatever the model's type is; layer norms do not.
    rms_norm = any("RMSNorm" in type(module).__name__ for module in policy.modules())
    tolerance = 1e-6 if rms_norm else 1e-12
    assert (gradient - expected_gradient).norm() <= tolerance * expected_gradient.norm()


def mixed_samples() -> list[TrainingSample]:
    generator = np.random.default_rng(0)
    bundles = [
        make_bundle(
            generator.integers(0, VOCABULARY, generator.integers(2, 20)).tolist(),
            [generator.integers(0, VOCABULARY, length).tolist() for length in generator.integers(1, 20, 6)],
        )
        for _ in range(5)
    ]
    return list(itertools.chain(*bundles))


@pytest.mark.parametrize("name", ["llama", "qwen2, tied", "gpt_neox"])
@pytest.mark.parametrize(("ranks", "micro_batch_tokens"), [(1, 10**6), (1, 60), (3, 200)])
def test_in_float32_sharing_changes_loss_and_gradient_by_rounding_only(
    name: str, ranks: int, micro_batch_tokens: int
) -> None:
    """However the batch is cut, and on however many ranks."""
    policy = sharing_policy(name).float()
    samples = mixed_samples()

    def learned(sharing: Any) -> tuple[float, Tensor]:
        shards = shard(samples, ranks, Packing(micro_batch_tokens, sharing))
        micro_batches = [batch for batches in shards for batch in batches]
        assert (max(len(bundle) for batch in micro_batches for bundle in batch) > 1) == (sharing != "off")
        return loss_and_gradient(policy, micro_batches)

    loss, gradient = learned("on")
    expected_loss, expected_gradient = learned("off")
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert (gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_in_16_bits_sharing_is_as_exact_as_each_response_alone(name: str) -> None:
    """Measured against float32, on average: these models enlarge each rounding error, so single gradients differ by a
    tenth either way."""
    rounded = sharing_policy(name).bfloat16()
    exact = copy.deepcopy(rounded).float()
    generator = np.random.default_rng(0)

    def drawn() -> list[int]:
        return generator.integers(0, VOCABULARY, generator.integers(1, 8)).tolist()

    errors: list[tuple[float, float]] = []
    for _ in range(8):
        bundles = range(generator.integers(1, 4))
        micro_batch = tuple(
            make_bundle(drawn(), [drawn() for _ in range(generator.integers(1, 5))]) for _ in bundles
        )
        _, expected = loss_and_gradient(exact, split(micro_batch))
        together, alone = (
            loss_and_gradient(rounded, micro_batches)[1].float()
            for micro_batches in ([micro_batch], split(micro_batch))
        )
        relative = [((each - expected).norm() / expected.norm()).item() for each in (together, alone)]
        errors.append((relative[0], relative[1]))
    shared_error, alone_error = np.mean(errors, axis=0)
    assert 0 < shared_error <= 1.25 * alone_error


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    policy = sharing_policy("llama")
    micro_batch = tuple(make_bundle([1, 2, 3 + i], [[4, 5, 6], [7], [8, 9]]) for i in range(2))
    expected = loss_and_gradient(policy, [micro_batch])
    policy.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    policy.train()
    loss = scores(policy, micro_batch)
    assert all(each.requires_grad for each in loss)
    # Reentrant checkpoints work with backward() alone.
    samples = [sample for bundle in micro_batch for sample in bundle]
    total = torch.stack(
        [
            sample.scale * (sample.advantage * logprobs.exp() + entropies.sin()).sum()
            for sample, (logprobs, entropies) in zip(samples, loss, strict=True)
        ]
    ).sum()
    total.backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    assert total.item() == pytest.approx(expected[0], rel=1e-12)
    assert (gradient - expected[1]).norm() <= 1e-12 * expected[1].norm()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_columns_are_laid_out_once_for_all_layers_and_passes(
    monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    """On a GPU the layers would otherwise wait for copies."""
    laid_out: list[type] = []
    for layout in (attention_layouts.Rows, attention_layouts.Packed):
        made = layout.of

        def of(*arguments: Any, made: Any = made, layout: type = layout) -> Any:
            laid_out.append(layout)
            return made(*arguments)

        monkeypatch.setattr(layout, "of", of)
    policy = sharing_policy("llama")
    if checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        policy.train()
    laid_out.clear()  # by the probe
    loss_and_gradient(policy, [(make_bundle([1, 2, 3], [[4, 5, 6], [7], [8, 9]]),)])
    assert len(laid_out) == 1


# --- What it does to a model otherwise


def test_the_model_computes_other_batches_as_before() -> None:
    """With and without padding on the left, as generation has it, and with a cache."""
    model = tiny_model("llama")
    with torch.no_grad():
        ids = torch.randint(0, VOCABULARY, (2, 7))
        padded = {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])}
        expected = [model(ids).logits, model(**padded).logits[:, 2:], model.generate(ids, max_new_tokens=5)]
        prepare_policy(model, LearnerConfig(prefix_sharing="on"), None)
        assert model.config._attn_implementation == ATTENTION
        found = [model(ids).logits, model(**padded).logits[:, 2:], model.generate(ids, max_new_tokens=5)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_repeated_keys_change_nothing_where_a_kernel_has_no_grouped_queries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In float32 on a GPU, PyTorch would otherwise compute all scores of a sequence in memory."""
    model = sharing_policy("qwen2").model
    assert model.config.num_attention_heads > model.config.num_key_value_heads
    ids = torch.randint(0, VOCABULARY, (2, 7))
    asked: list[torch.Size] = []

    def lacks(query: Tensor, key: Tensor) -> bool:
        asked.append(query.shape)
        return True

    with torch.no_grad():
        expected = model(ids).logits
        monkeypatch.setattr(shared_prefix, "_kernel_lacks_grouped_queries", lacks)
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-9, atol=1e-9)
    assert len(asked) == model.config.num_hidden_layers


def test_the_saved_model_does_not_name_our_attention(tmp_path: Any) -> None:
    """It would load nowhere else."""
    policy = sharing_policy("llama")
    policy.model.save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()


def test_names_and_weights_of_the_model_stay_as_they_are() -> None:
    """They are what is published and saved."""
    model = tiny_model("llama", tied=True)
    before = copy.deepcopy(dict(model.named_parameters()))
    policy = Policy(model)
    after = dict(policy.model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert len(list(policy.parameters())) == len(before), "the output layer is not counted twice"
