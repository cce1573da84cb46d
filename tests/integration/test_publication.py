"""A real engine serves the weights that a real learner published after the engine had loaded another model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from safetensors.torch import load_file, save_file

from cluster.core.types import Prompt, Sampling
from tests.integration.engines import (
    Engines,
    actor,
    engine_options,
    load_policy,
    random_tokens,
    sampling_gap,
    save_model,
)
from tests.integration.publishing import batch, publishing_learner

BOUNDS = {
    "float32": 1e-4,
    "bfloat16": 0.15,
}
"""The bounds of |Δ log p| between engine and learner. In bfloat16 a logit between 2 and 4 is rounded to a multiple of
2^-6 = 0.016, and both round dozens of intermediate results in a different order. The largest value seen was 0.04."""
STALE = 10
"""Stale weights differ by at least this many times the bound, which rounding cannot explain."""


@pytest.fixture(scope="module")
def engine_process(local_ray: None) -> ray.actor.ActorHandle:
    return actor(Engines).remote()


@pytest.fixture
def engines(engine_process: ray.actor.ActorHandle) -> Iterator[ray.actor.ActorHandle]:
    yield engine_process
    ray.get(engine_process.stop.remote())  # stopping twice is allowed


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("tied", "dtype"),
    [
        pytest.param(True, "float32", id="tied-float32"),
        pytest.param(True, "bfloat16", id="tied-bfloat16"),
        pytest.param(False, "float32", id="untied-float32"),
        pytest.param(False, "bfloat16", id="untied-bfloat16", marks=pytest.mark.slow),
    ],
)
async def test_an_engine_serves_the_published_weights(
    engines: ray.actor.ActorHandle, tmp_path: Path, tied: bool, dtype: str
) -> None:
    """The first weights are those of another model, and apply to cached prompts too. The next are those of a step."""
    loaded = save_model(tmp_path / "loaded", tied=tied, seed=1)
    learned = save_model(tmp_path / "learned", tied=tied, seed=2)
    prompt = Prompt("train/0/0", "", random_tokens(3), None, Sampling(4, 1.0, 24, seed=None))
    options = engine_options(loaded, dtype)
    near, far = BOUNDS[dtype], STALE * BOUNDS[dtype]

    async with publishing_learner(learned, dtype) as group:
        await asyncio.gather(group.start(), engines.start.remote(options))
        await engines.generate.remote(prompt)
        first = await group.publish(version=1)
        assert await engines.probe_gap.remote(first) > far, "the test must be able to detect stale weights"
        if tied:
            await engines.reload_as_vllm_does.remote(learned)
            assert await engines.probe_gap.remote(first) > far, (
                "if this fails, vLLM no longer needs `_repack_tied_head`"
            )
        assert await engines.update_weights.remote(first) < near
        answer = await engines.generate.remote(prompt)
        assert sampling_gap(answer, load_policy(learned, dtype)) < near
        assert {(response.min_version, response.max_version) for response in answer.responses} == {(1, 1)}

        await group.learn([batch()])
        second = await group.publish(version=2)
        assert await engines.probe_gap.remote(second) > far
        assert (
            await engines.sleep.remote()
        )  # on CPU the engine frees no memory; otherwise it behaves as on a GPU
        assert await engines.update_weights.remote(second) < near
        awake = await engines.generate.remote(prompt)
        assert {(response.min_version, response.max_version) for response in awake.responses} == {(2, 2)}

    assert not [name for name in await engines.stop.remote() if "EngineCore" in name]
    assert not list(Path("/dev/shm").glob(f"*{options.run_id}*")), (
        "the last worker must delete the weight files"
    )


def write_out_tied_head(file: Path) -> None:
    """Add the tied head to the weights, as some models on the hub do."""
    weights = load_file(file)
    save_file(
        weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, file, {"format": "pt"}
    )


@pytest.mark.timeout(400)
async def test_only_adapters_are_sent_and_the_engine_serves_merged_weights(
    engines: ray.actor.ActorHandle, tmp_path: Path
) -> None:
    """The worker adds the adapters of every version to the loaded weights, not to the previous version."""
    base = save_model(tmp_path / "base", tied=True, seed=1)
    write_out_tied_head(base / "model.safetensors")
    prompt = Prompt("train/0/0", "", random_tokens(3), None, Sampling(4, 1.0, 24, seed=None))
    near, far = BOUNDS["float32"], STALE * BOUNDS["float32"]

    async with publishing_learner(base, lora_rank=4, learning_rate=0.01) as group:
        await asyncio.gather(group.start(), engines.start.remote(engine_options(base)))
        before = await group.publish(version=1)
        assert await engines.update_weights.remote(before) < near
        for version in (2, 3):
            await group.learn([batch()])
            policy = await group.publish(version)
            assert await engines.probe_gap.remote(policy) > far, "the test must be able to detect old weights"
            assert await engines.update_weights.remote(policy) < near
            assert sum(map(len, await policy.weights)) < (base / "model.safetensors").stat().st_size / 4
        answer = await engines.generate.remote(prompt)
        await group.export(tmp_path / "exported")
    assert sampling_gap(answer, load_policy(tmp_path / "exported")) < near
