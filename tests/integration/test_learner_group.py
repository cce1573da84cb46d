"""Real DeepSpeed engines learn what plain torch learns, for every ZeRO stage, number of ranks, kind of offloading and
split of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig, ObjectiveConfig
from cluster.core.types import LEFT_FACTOR, TrainingBatch, TrainingSample
from learner.engine.group import LearnerGroup, LearnerStartError
from rollout.weights.lora_update import updated_weights
from tests.integration.learners import ReusedRanks, reused_ranks

pytestmark = pytest.mark.usefixtures("local_ray")

TEMPERATURE = 0.7
PROBE = (3, 4, 5, 6)
STEPS = 3


@pytest.fixture(scope="module")
def one_rank(local_ray: None) -> Iterator[ReusedRanks]:
    with reused_ranks(1) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def two_ranks(local_ray: None) -> Iterator[ReusedRanks]:
    with reused_ranks(2) as ranks:
        yield ranks


def make_batch(step: int) -> TrainingBatch:
    """Return groups of 1 to 6 responses, as if the responses without an advantage had been left out.

    The gradient of step 1 is far larger than the others, so that gradient clipping matters.
    """
    generator = np.random.default_rng(step)
    prompts = [
        prompt
        for responses in range(1, 7)
        for prompt in [generator.integers(3, 20, size=generator.integers(3, 12))] * responses
    ]
    lengths = generator.integers(1, 20, size=len(prompts))
    samples = tuple(
        TrainingSample(
            prompt_token_ids=prompt,
            response_token_ids=generator.integers(3, 20, size=length),
            sampler_logprobs=np.full(length, -3.0, dtype=np.float32),
            advantage=float(generator.normal()),
            scale=(10.0 if step == 1 else 1.0) / lengths.sum(),
        )
        for prompt, length in zip(prompts, lengths, strict=True)
    )
    return TrainingBatch(samples=samples)


def make_mini_batches(seed: int, learner: LearnerConfig) -> list[TrainingBatch]:
    return [make_batch(seed + 100 * part) for part in range(learner.mini_batches)]


@dataclass(frozen=True)
class Learned:
    gradient_norms: list[float]
    weights: dict[str, Tensor]


def learn_in_torch(model: Path, max_grad_norm: float = 1.0) -> Learned:
    """Do the same steps without our code: one response at a time, with torch's AdamW and clipping.

    On-policy, the gradient of every objective's surrogate is −A ∇ log π.
    """
    causal_lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(causal_lm.parameters(), lr=1e-3, weight_decay=0.0)
    norms = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for sample in make_batch(step).samples:
            ids = torch.tensor(np.concatenate([sample.prompt_token_ids, sample.response_token_ids]))
            start = len(sample.prompt_token_ids)
            logits = causal_lm(ids[None]).logits[0, start - 1 : -1] / TEMPERATURE
            logprobs = logits.log_softmax(dim=-1).gather(-1, ids[start:, None])
            (-sample.scale * sample.advantage * logprobs.sum()).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(causal_lm.parameters(), max_grad_norm)))
        optimizer.step()
    return Learned(norms, {name: weight.detach() for name, weight in causal_lm.named_parameters()})


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> Learned:
    return learn_in_torch(tiny_model)


@dataclass(frozen=True)
class Outcome(Learned):
    metrics: list[dict[str, float]]
    published: dict[str, Tensor]
    """The tensors that were sent to the rollout workers. `weights` are the weights that the workers serve with them."""
    restored: dict[str, Tensor]
    """The weights after loading a checkpoint from before the last step and repeating that step."""
    exported: dict[str, Tensor]
    """The restored weights in an exported Hugging Face directory."""
    probe: np.ndarray

    @property
    def losses(self) -> list[float]:
        return [batch["objective/loss"] for batch in self.metrics]


async def learn(
    ranks: ReusedRanks,
    model: Path,
    directory: Path,
    dtype: str = "float32",
    objective: ObjectiveConfig | None = None,
    **settings: Any,
) -> tuple[Outcome, LearnerGroup]:
    """Train on three batches, and repeat the third one from a checkpoint that was saved before it."""
    learner = LearnerConfig(learning_rate=1e-3, ranks=len(ranks.actors), **settings)
    options = LearnerOptions(
        str(model), dtype, TEMPERATURE, 0, learner, objective or ObjectiveConfig(), (PROBE,), STEPS + 1
    )
    group = await ranks.become(options)
    metrics = []
    for step in range(STEPS):
        if step == STEPS - 1:
            await group.save(directory)
        metrics.append(await group.learn(make_mini_batches(step, learner)))
    published, _ = await pull(group)
    await group.load(directory, directory / "scratch")
    await group.learn(make_mini_batches(STEPS - 1, learner))
    restored, probe = await pull(group)
    await group.export(directory / "exported")
    outcome = Outcome(
        gradient_norms=[step["objective/grad_norm"] for step in metrics],
        metrics=metrics,
        published=published,
        weights=served(model, published),
        restored=served(model, restored),
        exported=load_file(directory / "exported" / "model.safetensors"),
        probe=probe,
    )
    return outcome, group


async def pull(group: LearnerGroup) -> tuple[dict[str, Tensor], np.ndarray]:
    published = await group.publish(version=3)
    return load(b"".join(await published.weights)), published.probe_logprobs[0]


def served(model: Path, published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that a rollout worker serves after it received `published`."""
    if any(name.endswith(LEFT_FACTOR) for name in published):
        return dict(updated_weights(model, published, torch.device("cpu")))
    return published


def assert_same_weights(some: dict[str, Tensor], others: dict[str, Tensor], mean: float) -> None:
    """Assert that the weights differ by rounding only.

    Adam moves a weight by the learning rate even if its gradient consists of rounding errors. After three steps single
    weights may therefore differ by six times the learning rate, and in bfloat16 by half of the last bit.
    """
    assert some.keys() == others.keys()
    differences = torch.cat([(some[name].float() - others[name].float()).abs().flatten() for name in some])
    assert differences.mean() <= mean
    assert differences.max() <= 1e-2


def assert_consistent(outcome: Outcome) -> None:
    """Assert that the repeated step is bit-identical and that the exported weights are the published ones."""
    assert outcome.exported.keys() == outcome.weights.keys()
    for name, weight in outcome.weights.items():
        torch.testing.assert_close(outcome.restored[name], weight, rtol=0, atol=0)
        torch.testing.assert_close(outcome.exported[name], weight, rtol=0, atol=0)


def test_clipping_matters_in_these_batches(tiny_model: Path, expected: Learned) -> None:
    """Otherwise the tests below could not detect missing clipping."""
    assert min(expected.gradient_norms) > 1.5
    unclipped = learn_in_torch(tiny_model, max_grad_norm=1e9)
    with pytest.raises(AssertionError):
        assert_same_weights(unclipped.weights, expected.weights, mean=1e-5)


FLOAT32: dict[str, dict[str, Any]] = {
    "0": {"zero_stage": 0},
    "1": {"zero_stage": 1},
    "2": {"zero_stage": 2},
    "3": {"zero_stage": 3, "micro_batch_tokens": 150},
    "2-offload": {"zero_stage": 2, "offload": "optimizer"},
    "3-offload": {"zero_stage": 3, "offload": "parameters"},
    "3-checkpointing": {"zero_stage": 3, "gradient_checkpointing": True, "prefix_sharing": "on"},
    "2-alone": {"zero_stage": 2, "prefix_sharing": "off"},
}


@pytest.mark.parametrize("settings", FLOAT32.values(), ids=FLOAT32)
async def test_two_ranks_learn_what_torch_learns(
    two_ranks: ReusedRanks, tiny_model: Path, tmp_path: Path, expected: Learned, settings: dict[str, Any]
) -> None:
    settings = {"micro_batch_tokens": 100, "prefix_sharing": "on"} | settings
    outcome, _ = await learn(two_ranks, tiny_model, tmp_path, **settings)
    assert outcome.gradient_norms == pytest.approx(expected.gradient_norms, rel=1e-5)
    assert_same_weights(outcome.weights, expected.weights, mean=1e-7)
    assert_consistent(outcome)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
async def test_one_rank_learns_the_same(
    one_rank: ReusedRanks, tiny_model: Path, tmp_path: Path, expected: Learned, zero_stage: int
) -> None:
    outcome, _ = await learn(one_rank, tiny_model, tmp_path, zero_stage=zero_stage, prefix_sharing="off")
    assert outcome.gradient_norms == pytest.approx(expected.gradient_norms, rel=1e-5)
    assert_same_weights(outcome.weights, expected.weights, mean=1e-7)
    assert_consistent(outcome)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [1, 2])
async def test_bfloat16_learns_nearly_the_same(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    tmp_path: Path,
    expected: Learned,
    count: int,
    zero_stage: int,
) -> None:
    ranks = request.getfixturevalue("one_rank" if count == 1 else "two_ranks")
    outcome, _ = await learn(
        ranks, tiny_model, tmp_path, "bfloat16", zero_stage=zero_stage, micro_batch_tokens=100
    )
    assert outcome.gradient_norms == pytest.approx(expected.gradient_norms, rel=0.03)
    assert_same_weights(outcome.weights, expected.weights, mean=1e-3)
    assert {weight.dtype for weight in outcome.weights.values()} == {torch.bfloat16}
    assert_consistent(outcome)
    for actor in ranks.actors:
        assert await actor.evaluate.remote(optimizer_types) == {torch.float32}


def optimizer_types(engine: Any) -> set[torch.dtype]:
    """Return the data types of the weights that the optimizer updates and of its moments."""
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    stepped = {parameter.dtype for group in inner.param_groups for parameter in group["params"]}
    moments = {
        value.dtype
        for state in inner.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.numel() > 1
    }
    return stepped | moments


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
async def test_in_bfloat16_many_small_gradients_add_up(
    one_rank: ReusedRanks, tiny_model: Path, zero_stage: int
) -> None:
    """The same response 200 times, each in its own micro-batch, has 200 times its gradient.

    In a sum in bfloat16, each of the last hundred terms would be rounded to a multiple of 1/128 of the sum, always in
    the same direction.
    """
    sample = make_batch(0).samples[0]
    learner = LearnerConfig(
        zero_stage=zero_stage, micro_batch_tokens=1, prefix_sharing="off", learning_rate=1e-12
    )
    options = LearnerOptions(str(tiny_model), "bfloat16", 1.0, 0, learner, ObjectiveConfig(), (), 2)
    group = await one_rank.become(options)
    once = await group.learn([TrainingBatch((sample,))])
    often = await group.learn([TrainingBatch((sample,) * 200)])
    expected = 200 * once["objective/grad_norm"]
    assert often["objective/grad_norm"] == pytest.approx(expected, rel=1e-3)


OPTIONS_OF_THE_LOSS = ObjectiveConfig(
    name="hpo", kl_coefficient=0.1, entropy_coefficient=0.01, importance_cap=2.0, importance_level="sequence"
)


@pytest.mark.parametrize("lora_rank", [None, 4])
async def test_the_options_of_the_loss_do_not_depend_on_the_ranks(
    one_rank: ReusedRanks, two_ranks: ReusedRanks, tiny_model: Path, tmp_path: Path, lora_rank: int | None
) -> None:
    """The options are a reference policy (a second model, whole or partitioned, or the model without its adapters),
    entropies with their gradient, several optimizer steps per batch, and the gradient fraction."""
    settings: dict[str, Any] = {"epochs_per_batch": 2, "mini_batches": 2, "lora_rank": lora_rank}
    one, _ = await learn(
        one_rank,
        tiny_model,
        tmp_path / "one",
        objective=OPTIONS_OF_THE_LOSS,
        zero_stage=2,
        measure_gradient_fraction=True,
        **settings,
    )
    settings |= {"zero_stage": 3, "offload": "parameters", "micro_batch_tokens": 150}
    two, _ = await learn(two_ranks, tiny_model, tmp_path / "two", objective=OPTIONS_OF_THE_LOSS, **settings)
    for ours, expected in zip(two.metrics, one.metrics, strict=True):
        fraction = expected.pop("objective/gradient_fraction_positive")
        assert 0 < fraction < 1
        assert ours == pytest.approx(expected, rel=1e-4, abs=1e-6), (
            "measuring the fraction must not change the training"
        )
        for metric in ("kl_to_reference", "kl_to_old", "entropy", "clip_fraction_high"):
            assert expected[f"objective/{metric}"] > 0, metric
        assert expected["objective/ratio_max"] > 1 > expected["objective/ratio_min"]
    assert_same_weights(two.weights, one.weights, mean=1e-6)
    assert_consistent(one)
    assert_consistent(two)


LORA: dict[str, dict[str, Any]] = {
    "sharded": {"zero_stage": 3, "prefix_sharing": "on", "micro_batch_tokens": 150},
    "checkpointing": {"zero_stage": 3, "gradient_checkpointing": True, "prefix_sharing": "on"},
    "offload": {"zero_stage": 3, "offload": "parameters"},
    "whole": {"zero_stage": 0, "prefix_sharing": "off"},
}


async def test_adapters_learn_the_same_in_all_variants_and_only_they_are_published(
    one_rank: ReusedRanks, two_ranks: ReusedRanks, tiny_model: Path, tmp_path: Path
) -> None:
    one, _ = await learn(one_rank, tiny_model, tmp_path / "one", zero_stage=2, lora_rank=4)
    assert_consistent(one)
    before = load_file(tiny_model / "model.safetensors")
    changed = {name for name, weight in one.weights.items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}
    assert sum(map(Tensor.numel, one.published.values())) < sum(map(Tensor.numel, before.values())) / 4
    np.testing.assert_allclose(one.probe, transformers_logprobs(tmp_path / "one" / "exported"), atol=1e-5)

    for name, settings in LORA.items():
        many, group = await learn(two_ranks, tiny_model, tmp_path / name, lora_rank=4, **settings)
        assert many.losses == pytest.approx(one.losses, rel=1e-4), name
        assert many.gradient_norms == pytest.approx(one.gradient_norms, rel=1e-4), name
        assert_same_weights(many.published, one.published, mean=1e-5)
        assert_consistent(many)
        assert many.exported.keys() == before.keys()

        references = [actor.evaluate.remote(logprobs_without_adapters) for actor in two_ranks.actors]
        for logprobs in [await reference for reference in references]:
            np.testing.assert_allclose(logprobs, transformers_logprobs(tiny_model), atol=1e-5)
        again = await group.learn([make_batch(0)])
        assert np.isfinite(again["objective/grad_norm"]), "training of the adapters continues"
        now, _ = await pull(group)
        assert any(not torch.equal(now[key], tensor) for key, tensor in many.published.items())


def logprobs_without_adapters(engine: Any) -> np.ndarray:
    from learner.model.adapters import adapters_disabled
    from learner.model.policy import sequence_logprobs

    with adapters_disabled(engine.module):
        return sequence_logprobs(engine.module, PROBE, engine.device)


def transformers_logprobs(model: Path) -> np.ndarray:
    causal_lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        logprobs = causal_lm(torch.tensor([PROBE])).logits[0, :-1].log_softmax(dim=-1)
    return logprobs.gather(-1, torch.tensor(PROBE[1:])[:, None])[:, 0].numpy()


async def test_an_adapter_for_a_layer_that_is_not_linear_is_refused(
    one_rank: ReusedRanks, tiny_model: Path
) -> None:
    learner = LearnerConfig(lora_rank=4, lora_target_modules=("q_proj", "lm_head"))
    options = LearnerOptions(str(tiny_model), "float32", 1.0, 0, learner, ObjectiveConfig(), (), 1)
    with pytest.raises(
        LearnerStartError, match=r"lora_target_modules: lm_head is not a linear layer .* v_proj"
    ):
        await one_rank.become(options)
