"""Real DeepSpeed engines: what is learned does not depend on how many ranks learn it, or how the batch is cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from safetensors.numpy import load, load_file

from cluster.config import ClusterConfig, LearnerConfig, ObjectiveConfig
from cluster.placement import connect, cpu_environment
from learner.engine import LearnerOptions
from learner.group import LearnerGroup
from learner.rank import LearnerRank
from learner.weighing import Row, WeighedBatch


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    connect(ClusterConfig())
    yield
    ray.shutdown()


def make_batch(seed: int) -> WeighedBatch:
    """Groups of 1 to 6 responses: those without an advantage have been left out."""
    generator = np.random.default_rng(seed)
    prompts = [
        prompt
        for responses in range(1, 7)
        for prompt in [generator.integers(3, 20, size=generator.integers(3, 12))] * responses
    ]
    lengths = generator.integers(1, 20, size=len(prompts))
    rows = tuple(
        Row(
            prompt_token_ids=prompt,
            response_token_ids=generator.integers(3, 20, size=length),
            sampler_logprobs=np.full(length, -3.0, dtype=np.float32),
            advantage=float(generator.normal()),
            scale=1.0 / lengths.sum(),
        )
        for prompt, length in zip(prompts, lengths, strict=True)
    )
    return WeighedBatch(rows=rows)


def make_mini_batches(seed: int, learner: LearnerConfig) -> list[WeighedBatch]:
    return [make_batch(seed + 100 * part) for part in range(learner.mini_batches)]


@dataclass(frozen=True)
class Outcome:
    metrics: list[dict[str, float]]
    weights: dict[str, np.ndarray]
    restored: dict[str, np.ndarray]
    exported: dict[str, np.ndarray]
    """The same weights as `restored`, in a Hugging Face directory."""


async def learn(
    model: Path, directory: Path, objective: ObjectiveConfig | None = None, **settings: Any
) -> Outcome:
    """Three batches; a checkpoint after the second, from which the third is done again."""
    learner = LearnerConfig(learning_rate=1e-3, **settings)
    ranks = learner.ranks
    options = LearnerOptions(
        str(model), "float32", 0.7, 0, learner, objective or ObjectiveConfig(), ((3, 4, 5, 6),), 4
    )
    actor = ray.remote(LearnerRank).options(
        num_cpus=0.5, runtime_env={"env_vars": cpu_environment(1, on_gpu=False)}
    )
    actors = [actor.remote(rank, options) for rank in range(ranks)]
    try:
        group = LearnerGroup(actors, options)
        await group.start()
        metrics = []
        for step in range(3):
            if step == 2:
                await group.save(directory)
            metrics.append(await group.learn(make_mini_batches(step, learner)))
        weights = await published(group, 3)
        await group.load(directory)
        await group.learn(make_mini_batches(2, learner))
        restored = await published(group, 3)
        await group.export(directory / "exported")
    finally:
        for actor in actors:
            ray.kill(actor)
    return Outcome(
        metrics=metrics,
        weights=weights,
        restored=restored,
        exported=load_file(directory / "exported" / "model.safetensors"),
    )


async def published(group: LearnerGroup, version: int) -> dict[str, np.ndarray]:
    publication = await group.publish(version)
    return load(bytes(await publication.weights))


async def test_learning_does_not_depend_on_ranks_stages_micro_batches_or_sharing(
    tiny_model: Path, tmp_path: Path
) -> None:
    one = await learn(tiny_model, tmp_path / "one", zero_stage=0, prefix_sharing="off")
    others: dict[str, dict[str, Any]] = {
        "sharing": {"zero_stage": 2, "prefix_sharing": "on"},
        "two ranks": {"ranks": 2, "zero_stage": 2, "micro_batch_tokens": 100, "measure_gradient_share": True},
        "sharded": {"ranks": 2, "zero_stage": 3, "micro_batch_tokens": 150, "prefix_sharing": "on"},
        "sharded and checkpointed": {
            "ranks": 2,
            "zero_stage": 3,
            "micro_batch_tokens": 150,
            "prefix_sharing": "on",
            "gradient_checkpointing": True,
            "measure_gradient_share": True,
        },
    }
    for name, settings in others.items():
        many = await learn(tiny_model, tmp_path / name, **settings)
        for batch in many.metrics:  # what is measured leaves no trace
            batch.pop("objective/gradient_share_positive", None)
        assert_same(many, one, name)


def assert_same(many: Outcome, one: Outcome, name: str) -> None:
    for ours, expected in zip(many.metrics, one.metrics, strict=True):
        assert ours == pytest.approx(expected, rel=1e-4, abs=1e-6), name
        assert ours["objective/loss"] == pytest.approx(expected["objective/loss"], rel=1e-5), name
    assert many.exported.keys() == many.weights.keys() == one.weights.keys()
    for parameter, weight in one.weights.items():
        np.testing.assert_allclose(many.weights[parameter], weight, atol=2e-4, err_msg=f"{name}: {parameter}")
        np.testing.assert_allclose(many.restored[parameter], many.weights[parameter], atol=1e-6)
        np.testing.assert_array_equal(many.exported[parameter], many.restored[parameter])


async def test_nor_do_the_options_of_the_loss(tiny_model: Path, tmp_path: Path) -> None:
    """A reference beside the model, whole or partitioned; entropies with their gradient; several optimiser steps per
    batch; and the shares of the gradient."""
    objective = ObjectiveConfig(
        name="hpo", kl_weight=0.1, entropy_weight=0.01, importance_cap=2.0, importance_level="sequence"
    )
    settings: dict[str, Any] = {"epochs_per_batch": 2, "mini_batches": 2, "measure_gradient_share": True}
    one = await learn(tiny_model, tmp_path / "one", objective, zero_stage=2, **settings)
    settings |= {"zero_stage": 3, "ranks": 2, "micro_batch_tokens": 150}
    two = await learn(tiny_model, tmp_path / "two", objective, **settings)
    assert_same(two, one, "two ranks")
    assert all(0 < batch["objective/gradient_share_positive"] < 1 for batch in one.metrics)
    for metric in ("kl_to_reference", "kl_to_old", "entropy", "clip_share_high"):
        assert all(batch[f"objective/{metric}"] > 0 for batch in one.metrics), metric
    assert all(batch["objective/ratio_max"] > 1 > batch["objective/ratio_min"] for batch in one.metrics)
