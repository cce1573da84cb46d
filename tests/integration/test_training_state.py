"""A real DeepSpeed learner resumes exactly with the same number of ranks, and closely with another number."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from safetensors.torch import load

from cluster.core.actor import Actor
from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig, ObjectiveConfig
from cluster.runtime.placement import cpu_environment
from learner.engine.group import LearnerGroup
from learner.engine.rank import LearnerRank
from learner.state.state_files import CheckpointError, CheckpointWriteError, record
from tests.integration.test_learner_group import make_batch

pytestmark = pytest.mark.usefixtures("local_ray")
Weights = Mapping[str, np.ndarray]


class PartitionedRank(LearnerRank):
    """A rank whose ZeRO stage 3 partitions all parameters, even the small ones of a tiny model."""

    def start(self, address: str, port: int) -> int:
        import learner.engine.deepspeed_engine

        as_configured = learner.engine.deepspeed_engine.deepspeed_config

        def everything_partitioned(*arguments: Any) -> dict[str, Any]:
            config = as_configured(*arguments)
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
            return config

        learner.engine.deepspeed_engine.deepspeed_config = everything_partitioned
        return super().start(address, port)


@asynccontextmanager
async def fresh_learner(
    model: Path, ranks: int, zero_stage: int, dtype: str = "float32", **settings: Any
) -> AsyncIterator[LearnerGroup]:
    """Start a learner in new processes, which share nothing with those of another learner."""
    learner = LearnerConfig(
        learning_rate=1e-3,
        lr_schedule="cosine",
        warmup_steps=3,
        weight_decay=0.01,
        mini_batches=2,
        micro_batch_tokens=150,
        ranks=ranks,
        zero_stage=zero_stage,
        **settings,
    )
    options = LearnerOptions(str(model), dtype, 0.7, 0, learner, ObjectiveConfig(), ((3, 4, 5, 6),), steps=20)
    actor = ray.remote(PartitionedRank).options(
        num_cpus=0.5, runtime_env={"env_vars": cpu_environment(1, on_gpu=False)}
    )
    actors = [actor.remote(rank, options) for rank in range(ranks)]
    try:
        group = LearnerGroup([Actor(actor) for actor in actors], options)
        await group.start()
        yield group
    finally:
        for handle in actors:
            ray.kill(handle)


async def learn(group: LearnerGroup, steps: range) -> list[dict[str, float]]:
    """Train for the steps, with two mini-batches each. The data of a step depends only on its number."""
    return [await group.learn([make_batch(2 * step), make_batch(2 * step + 1)]) for step in steps]


async def weights_of(group: LearnerGroup) -> Weights:
    published = await group.publish(0)
    tensors = load(b"".join(await published.weights))
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}


def assert_same(found: Weights, expected: Weights, what: str) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(found[name], weight, err_msg=f"{what}: {name}")


def assert_close(found: Weights, expected: Weights, what: str) -> None:
    for name, weight in expected.items():
        np.testing.assert_allclose(found[name], weight, atol=1e-5, err_msg=f"{what}: {name}")


def contents(directory: Path) -> dict[str, Any]:
    return {str(file): record(file) for file in sorted(directory.rglob("*")) if file.is_file()}


@pytest.mark.parametrize(
    "zero_stage", [*(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 2)), 3]
)
async def test_five_steps_and_five_more_are_ten(
    tiny_model: Path, tmp_path: Path, small_disk: Path | None, zero_stage: int
) -> None:
    """Five steps, a resumption in new processes and five more steps are bit-identical to ten steps.

    With one rank in place of two, and with two again, they differ by rounding, because gradients are summed in
    another order.
    """
    at_5, at_6, scratch = tmp_path / "at_5", tmp_path / "at_6", tmp_path / "scratch"
    async with fresh_learner(tiny_model, 2, zero_stage) as whole:
        await learn(whole, range(5))
        sealed = await whole.save(at_5)
        w5 = await weights_of(whole)
        first = await learn(whole, range(5, 6))
        w6 = await weights_of(whole)
        rest = [*first, *await learn(whole, range(6, 7))]
        w7 = await weights_of(whole)
        rest += await learn(whole, range(7, 10))
        w10 = await weights_of(whole)
    before = contents(at_5)
    assert {str(file): sealed[file] for file in sealed} == before, (
        "the rank that wrote a file must record its hash"
    )

    async with fresh_learner(tiny_model, 1, zero_stage) as alone:
        await alone.load(at_5, scratch)
        assert_same(await weights_of(alone), w5, "one rank in place of two")
        (resized,) = await learn(alone, range(5, 6))
        assert resized["objective/loss"] == pytest.approx(first[0]["objective/loss"], rel=1e-4)
        assert resized["objective/grad_norm"] == pytest.approx(first[0]["objective/grad_norm"], rel=1e-4)
        assert resized["objective/learning_rate"] == first[0]["objective/learning_rate"]
        assert_close(await weights_of(alone), w6, "one rank in place of two")
        await alone.save(at_6)

    async with fresh_learner(tiny_model, 2, zero_stage) as resumed:
        await resumed.load(at_5, scratch)
        assert_same(await weights_of(resumed), w5, "as loaded")
        assert await learn(resumed, range(5, 10)) == rest
        assert_same(await weights_of(resumed), w10, "after ten steps")

        await resumed.load(at_6, scratch)
        await learn(resumed, range(6, 7))
        assert_close(await weights_of(resumed), w7, "two ranks in place of one")
        assert contents(at_5) == before, "loading must not change a checkpoint"
        assert not scratch.exists()

        if zero_stage == 2:
            await assert_refusals_are_one_line(resumed, at_5, scratch, small_disk)


VARIANTS: dict[str, dict[str, Any]] = {
    "bfloat16": {"zero_stage": 2, "dtype": "bfloat16"},
    "bfloat16, sharded": {"zero_stage": 3, "dtype": "bfloat16"},
    "optimizer offloaded": {"zero_stage": 2, "offload": "optimizer"},
    "parameters offloaded": {"zero_stage": 3, "offload": "parameters"},
    "adapters": {"zero_stage": 2, "lora_rank": 4},
    "adapters, sharded": {"zero_stage": 3, "lora_rank": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
async def test_a_resumption_is_exact_for_every_way_to_keep_the_state(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    at_5, scratch = tmp_path / "at_5", tmp_path / "scratch"
    async with fresh_learner(tiny_model, 2, **settings) as whole:
        await learn(whole, range(5))
        await whole.save(at_5)
        w5 = await weights_of(whole)
        rest = await learn(whole, range(5, 10))
        w10 = await weights_of(whole)

    async with fresh_learner(tiny_model, 2, **settings) as resumed:
        await resumed.load(at_5, scratch)
        assert_same(await weights_of(resumed), w5, "as loaded")
        assert await learn(resumed, range(5, 10)) == rest
        assert_same(await weights_of(resumed), w10, "after ten steps")

    async with fresh_learner(tiny_model, 1, **settings) as alone:
        await alone.load(at_5, scratch)
        assert_same(await weights_of(alone), w5, "one rank in place of two")
        (resized,) = await learn(alone, range(5, 6))
        assert resized["objective/loss"] == pytest.approx(rest[0]["objective/loss"], rel=1e-2)
        assert resized["objective/learning_rate"] == rest[0]["objective/learning_rate"]


async def assert_refusals_are_one_line(
    learner: LearnerGroup, state: Path, scratch: Path, small_disk: Path | None
) -> None:
    """Assert that a foreign state and a full disk are refused in one line. The ranks cannot be used after this."""
    description = (state / "description.json").read_text()
    (state / "description.json").write_text(description.replace('"LlamaForCausalLM"', '"Qwen2ForCausalLM"'))
    with pytest.raises(
        CheckpointError, match="its model is a Qwen2ForCausalLM, and this run's model is"
    ) as caught:
        await learner.load(state, scratch)
    assert "\n" not in str(caught.value)
    if small_disk is None:
        return
    with pytest.raises(CheckpointWriteError, match=str(small_disk)) as caught:
        await learner.save(small_disk / "learner")
    assert "\n" not in str(caught.value)
    assert "No space left on device" in str(caught.value)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """Mount a file system that is too small for the tiny model. Yields None if mounting is not allowed."""
    path = tmp_path / "small"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
