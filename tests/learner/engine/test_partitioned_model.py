"""A model under ZeRO 3: two ranks load, test, publish and export it, and none of them holds the whole of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig, ObjectiveConfig
from learner.model.supervised import character_tokenizer
from tests.builders import tiny_model
from tests.learner.engine.allocations import Allocations, allocations
from tests.learner.engine.rank_processes import in_ranks

pytestmark = pytest.mark.timeout(
    900
)  # on a busy machine two processes take minutes to import their libraries

RANKS = 2
TOKENS = (3, 1, 4, 1, 5, 9, 2, 6)
BUCKET_BYTES = 600_000
SLACK_BYTES = 200_000
"""Small tensors beside the weights: less than a tenth of the rank's part."""
SIZES = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def learner_options(model: Path, dtype: str, zero_stage: int, **settings: Any) -> LearnerOptions:
    learner = LearnerConfig.model_validate({"zero_stage": zero_stage, "ranks": RANKS, **settings})
    return LearnerOptions(str(model), dtype, 1.0, 0, learner, ObjectiveConfig(), (TOKENS,), 1)


def measured(model: Path, dtype: str, folder: Path) -> dict[str, Any]:
    """Do in one rank what the tests look at. Returns the facts."""
    from learner.engine.deepspeed_engine import build_engine, build_policy, export_model
    from learner.engine.weight_stream import published_sources, streamed_weights
    from learner.model.policy import sequence_logprobs

    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # the allocations of other threads are not counted
    files = list(model.glob("*.safetensors"))
    cpu = torch.device("cpu")
    whole, packing = build_policy(
        learner_options(model, dtype, 2)
    )  # warms up, so that only weights are counted
    facts: dict[str, Any] = {
        "weights": {name: p.detach() for name, p in whole.model.named_parameters()},
        "buffers": dict(whole.model.named_buffers()),
        "logprobs": torch.from_numpy(sequence_logprobs(whole, TOKENS, cpu)),
        "packing": repr(packing),
    }
    with allocations(files) as facts["allocated_whole"]:
        build_policy(learner_options(model, dtype, 2))
    with allocations(files) as facts["allocated_partitioned"]:
        policy, packing = build_policy(learner_options(model, dtype, 3))
    facts["partitioned_buffers"] = dict(policy.model.named_buffers())
    facts["partitioned_packing"] = repr(packing)
    facts["present"] = [name for name, p in policy.model.named_parameters() if p.numel()]
    facts["failing"] = present_after_a_failing_pass(policy)
    del policy
    whole, _ = build_policy(learner_options(folder / "changed", dtype, 2))
    facts["changed"] = {name: p.detach() for name, p in whole.model.named_parameters()}
    facts["partitioned_changed"] = loaded_from_changed_files(learner_options(folder / "changed", dtype, 3))
    del whole

    options = learner_options(model, dtype, 3)
    engine, _ = build_engine(options)
    facts["partitioned_logprobs"] = torch.from_numpy(sequence_logprobs(engine.module, TOKENS, engine.device))
    sources = published_sources(engine, options.learner)
    facts["layout"] = [tuple(source.layout) for source in sources]
    with (
        allocations() as facts["allocated_streaming"],
        streamed_weights(engine, sources, BUCKET_BYTES) as tensors,
    ):
        facts["equal"] = tensors and [
            torch.equal(tensor, expected)  # which allocates nothing
            for tensor, expected in zip(tensors.values(), facts["weights"].values(), strict=True)
        ]
    with (
        allocations() as facts["allocated_keeping"],
        streamed_weights(engine, sources, BUCKET_BYTES) as tensors,
    ):
        facts["streamed"] = tensors and dict(tensors)
    facts["gathers"] = gathers(engine, sources)
    facts["abandoned"] = abandoned(engine, sources)
    export_model(engine, options, folder / "exported")
    for name, value in facts.items():
        facts[name] = astuple(value) if isinstance(value, Allocations) else value
    return facts


def loaded_from_changed_files(options: LearnerOptions) -> dict[str, Tensor]:
    """Return the weights of a model whose parameters are all partitioned, before DeepSpeed builds its engine."""
    import deepspeed

    from learner.engine.deepspeed_engine import build_policy

    policy, _ = build_policy(options)
    assert all(p.numel() == 0 for p in policy.parameters()), (
        "a parameter is whole, on the device it was read to"
    )
    with deepspeed.zero.GatheredParameters(list(policy.parameters())):
        return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def present_after_a_failing_pass(policy: Any) -> list[str]:
    """Return the parameters that are still gathered after a forward pass that failed in its middle."""
    from learner.model.partitioned import gathered_in_forward

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    handle = policy.model.base_model.layers[3].mlp.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError), gathered_in_forward(policy), torch.no_grad():
        policy.model(torch.tensor([TOKENS]))
    handle.remove()
    return [name for name, p in policy.model.named_parameters() if p.numel()]


def gathers(engine: Any, sources: Any) -> dict[str, int]:
    """Return how often buckets are gathered in one pass in order, and for two names in turn."""
    from learner.engine.weight_stream import WeightStream, buckets, streamed_weights

    numbers: list[int] = []
    gather = WeightStream._gather

    def counting(stream: WeightStream, bucket: int) -> None:
        numbers.append(bucket)
        gather(stream, bucket)

    WeightStream._gather = counting  # type: ignore[method-assign]
    try:
        with streamed_weights(engine, sources, BUCKET_BYTES) as tensors:
            for _ in tensors.values() if tensors is not None else ():
                pass
        in_order = len(numbers)
        with streamed_weights(engine, sources, BUCKET_BYTES) as tensors:
            if tensors is not None:
                first, *_, last = tensors
                for name in (first, last, last, first):
                    tensors[name]
    finally:
        WeightStream._gather = gather  # type: ignore[method-assign]
    return {
        "buckets": len(buckets(sources, BUCKET_BYTES)),
        "in_order": in_order,
        "in_turn": len(numbers) - in_order,
    }


def abandoned(engine: Any, sources: Any) -> str:
    """Return what happens to all ranks when rank 0 fails in the middle of a stream."""
    from learner.engine.weight_stream import streamed_weights

    try:
        with streamed_weights(engine, sources, BUCKET_BYTES) as tensors:
            if tensors is not None:
                next(iter(tensors.values()))
                raise ZeroDivisionError
    except ZeroDivisionError:
        return "failed"
    return "continued"


def state_with_padding(model: Path) -> list[float]:
    """Train with memory that contains NaN until it is written. Returns the gradient norms."""
    from learner.engine.deepspeed_engine import build_engine
    from learner.engine.finite import refuse_non_finite_state

    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    norms = []
    for settings in ({}, {"lora_rank": 1}):
        engine, _ = build_engine(learner_options(model, "float32", 3, **settings))
        parts = [
            p.ds_tensor.ds_numel * RANKS - p.ds_numel for p in engine.module.parameters() if p.requires_grad
        ]
        assert any(parts), "no part has padding"
        loss = engine.module.model(torch.tensor([TOKENS])).logits.square().mean()
        engine.backward(loss)
        engine.step()
        norms.append(float(engine.get_global_grad_norm()))
        refuse_non_finite_state(engine)
    return norms


def test_the_padding_of_parts_is_not_taken_for_weights(tmp_path: Path) -> None:
    """DeepSpeed does not initialize it."""
    model = tiny_model("gpt2", n_embd=6, n_inner=21, n_layer=1, n_head=2, n_positions=65)
    model.to(torch.float32).save_pretrained(tmp_path / "model")
    for norms in in_ranks(RANKS, tmp_path, state_with_padding, tmp_path / "model"):
        assert all(norm > 0 for norm in norms)


CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "llama": ("llama", {}, "float32", "bfloat16"),
    "fused experts": (
        "mixtral",
        {"num_local_experts": 4, "intermediate_size": 128, "num_hidden_layers": 6},
        "bfloat16",
        "float32",
    ),
}
"""The kind of model, its settings, the type of its files, and the type that it is loaded in."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(case, id=name, marks=() if name == "llama" else pytest.mark.slow)
        for name, case in CASES.items()
    ],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a model, and the type in which it is loaded."""
    kind, settings, stored, dtype = request.param
    folder = tmp_path_factory.mktemp(kind)
    model = tiny_model(kind, tied=True, initializer_range=0.05, **SIZES | settings)
    model.to(getattr(torch, stored)).save_pretrained(folder / "model")
    character_tokenizer("ab", ["<answer>"], 128).save_pretrained(folder / "model")
    change_files(folder / "model", folder / "changed")
    return folder, dtype


def change_files(model: Path, changed: Path) -> None:
    """Copy a tied model's files with an output layer of its own, and without a weight."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, changed)
    weights = load_file(changed / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].flip(0).contiguous()
    del weights["model.norm.weight"]  # it begins with ones
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def facts(case: tuple[Path, str]) -> list[dict[str, Any]]:
    """The facts of both ranks."""
    folder, dtype = case
    return in_ranks(RANKS, folder, measured, folder / "model", dtype, folder)


def size(weights: Mapping[str, Tensor]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights.values())


def largest(weights: Mapping[str, Tensor]) -> int:
    return max(weight.numel() * weight.element_size() for weight in weights.values())


def assert_equal(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    assert list(some) == list(others)
    for name, tensor in some.items():
        torch.testing.assert_close(tensor, others[name], rtol=0, atol=0)


def test_a_rank_never_holds_the_whole_model(facts: list[dict[str, Any]]) -> None:
    """It holds its part and the parameter that is being loaded; from fused weights also the parts of that."""
    for rank in facts:
        part, most = size(rank["weights"]) / RANKS, largest(rank["weights"])
        whole_peak, _ = rank["allocated_whole"]
        assert whole_peak >= size(rank["weights"]), "the measurement would not show it"
        peak, end = rank["allocated_partitioned"]
        assert end <= part + SLACK_BYTES
        assert peak <= part + 3 * most + SLACK_BYTES
        assert part + 3 * most + SLACK_BYTES < 0.9 * whole_peak
        assert rank["present"] == []


def test_weights_and_buffers_are_those_of_a_whole_model(facts: list[dict[str, Any]]) -> None:
    """The frequencies of rotary positions too, which keep their own type."""
    first, *_ = facts
    for rank in facts:
        assert_equal(rank["partitioned_buffers"], rank["buffers"])
        assert rank["buffers"]
    assert_equal(first["streamed"], first["weights"])


def test_files_that_do_not_fit_the_configuration_are_loaded_as_for_a_whole_model(
    facts: list[dict[str, Any]],
) -> None:
    """The output layer is not tied if the files hold another one, and a weight that they lack is initialized."""
    for rank in facts:
        assert "lm_head.weight" in rank["changed"]
        assert_equal(rank["partitioned_changed"], rank["changed"])


def test_it_is_tested_as_a_whole_model_is(facts: list[dict[str, Any]]) -> None:
    """The test of shared prefixes runs on the partitioned model, and finds the same."""
    for rank in facts:
        assert rank["partitioned_packing"] == rank["packing"]
        assert "auto" in rank["packing"]
        torch.testing.assert_close(rank["partitioned_logprobs"], rank["logprobs"], rtol=0, atol=1e-5)


def test_a_pass_that_fails_leaves_nothing_gathered(facts: list[dict[str, Any]]) -> None:
    assert [rank["failing"] for rank in facts] == [[], []]


def test_publication_holds_one_bucket(facts: list[dict[str, Any]]) -> None:
    """And the last tensor of the bucket before it, which the reader still names."""
    for rank in facts:
        bucket = max(BUCKET_BYTES, largest(rank["weights"]))
        peak, end = rank["allocated_streaming"]
        assert peak <= bucket + largest(rank["weights"]) + SLACK_BYTES
        assert end <= SLACK_BYTES
        assert peak < size(rank["weights"]) / 2
    kept, _ = facts[0]["allocated_keeping"]
    assert kept >= size(facts[0]["weights"]), "the measurement would not show it"


def test_the_tensors_come_in_the_order_of_the_layout(facts: list[dict[str, Any]]) -> None:
    first, second = facts
    assert first["layout"] == second["layout"]
    assert first["layout"] == [
        (name, str(weight.dtype).removeprefix("torch."), tuple(weight.shape))
        for name, weight in first["weights"].items()
    ]
    assert first["equal"] == [True] * len(first["weights"])
    assert second["streamed"] is None


def test_each_bucket_is_gathered_once_and_again_only_after_another(facts: list[dict[str, Any]]) -> None:
    for rank in facts:
        counts = rank["gathers"]
        assert counts["buckets"] > 3
        assert counts["in_order"] == counts["buckets"]
        assert counts["in_turn"] == 3


def test_if_rank_0_fails_the_others_continue(facts: list[dict[str, Any]]) -> None:
    assert [rank["abandoned"] for rank in facts] == ["failed", "continued"]


def test_the_exported_model_is_the_whole_one(facts: list[dict[str, Any]], case: tuple[Path, str]) -> None:
    from transformers import AutoModelForCausalLM

    exported = AutoModelForCausalLM.from_pretrained(case[0] / "exported", dtype="auto")
    assert_equal({name: p.detach() for name, p in exported.named_parameters()}, facts[0]["weights"])
