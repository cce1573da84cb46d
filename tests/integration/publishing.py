"""A real learner, a real engine, and the checks that every weight transport must pass between the two."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from safetensors.torch import load_file, save_file

from cluster.core.actor import Actor
from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig, ObjectiveConfig
from cluster.core.types import PolicyVersion, Prompt, Sampling, TrainingBatch, TrainingSample
from cluster.core.weight_transport import (
    WEIGHT_TRANSPORTS,
    CoordinatorContext,
    UpdateTarget,
    WeightCoordinator,
    WeightTransport,
    transport_part,
)
from learner.engine.group import LearnerGroup
from learner.engine.rank import LearnerRank
from tests.integration.engines import (
    Engines,
    actor,
    engine_options,
    load_policy,
    random_tokens,
    sampling_gap,
    save_model,
)

BOUNDS = {
    "float32": 1e-4,
    "bfloat16": 0.15,
}
"""Bounds of |Δ log p| between engine and learner. In bfloat16 a logit between 2 and 4 is rounded to a multiple of
2^-6 = 0.016. Engine and learner each round dozens of intermediate results before it, in different orders; the largest
observed difference is 0.04."""
STALE = 10
"""The number of bounds that stale weights must be away at least. Rounding cannot explain such a difference."""
PROCESS = "rollout-0.0"


@asynccontextmanager
async def publishing_learner(
    model: Path,
    dtype: str = "float32",
    *,
    transport: WeightTransport = WEIGHT_TRANSPORTS["pull"],
    **settings: Any,
) -> AsyncIterator[LearnerGroup]:
    """Yield a learner that is not started. By default one Adam step changes most weights by about their own size."""
    probes = (random_tokens(1), random_tokens(2))
    config = LearnerConfig.model_validate({"learning_rate": 0.1} | settings)
    options = LearnerOptions(
        str(model), dtype, 1.0, 0, config, ObjectiveConfig(), probes, 1, transport=transport
    )
    rank: Actor[LearnerRank] = Actor(actor(LearnerRank).remote(0, options))
    try:
        yield LearnerGroup([rank], options)
    finally:
        ray.kill(rank.handle)


def batch() -> TrainingBatch:
    """Return a batch of four responses."""
    return TrainingBatch(
        samples=tuple(
            TrainingSample(
                prompt_token_ids=np.array(random_tokens(seed)[:20]),
                response_token_ids=np.array(random_tokens(seed)[20:40]),
                sampler_logprobs=np.full(20, -3.0, dtype=np.float32),
                advantage=1.0,
                scale=1 / 80,
            )
            for seed in range(4)
        )
    )


@dataclass(frozen=True)
class OneWorkerFleet:
    """The coordinator of a transport and one worker, in the place of a fleet."""

    coordinator: WeightCoordinator
    worker: Actor[Engines]

    async def serve(self, policy_version: PolicyVersion, *, up_to_date: bool) -> float:
        """Distribute a version to the worker. Return its largest |Δ log p| on the probe.

        Args:
            policy_version: the version to serve.
            up_to_date: True if the worker serves the previous version.
        """
        serving = [PROCESS] if up_to_date else []
        distributing = asyncio.create_task(
            self.coordinator.hand_out(policy_version, serving, late=not up_to_date)
        )
        await asyncio.sleep(0)
        target = UpdateTarget("rollout-0", PROCESS, self.worker)
        gap = await self.coordinator.bring(target, policy_version)
        await distributing
        return gap.largest


@asynccontextmanager
async def one_worker_fleet(
    transport: WeightTransport, learner: LearnerGroup, worker: Actor[Engines]
) -> AsyncIterator[OneWorkerFleet]:
    """Yield a fleet whose errors and messages fail the test."""
    messages: list[str] = []
    async with asyncio.TaskGroup() as background:
        context = CoordinatorContext(60.0, 1, learner, messages.append, background)
        yield OneWorkerFleet(transport_part(transport.coordinator)(context), worker)
    assert not messages


async def check_whole_weights(
    transport: WeightTransport, worker: Actor[Engines], directory: Path, *, tied: bool, dtype: str
) -> None:
    """Check that a version is served, for a worker that is new and for one that serves the previous version.

    The first version has the weights of another model, and the same prompt has been sampled before under the loaded
    weights, so that it is in the prefix cache. The second version has the weights after a training step.
    """
    loaded = save_model(directory / "loaded", tied=tied, seed=1)
    learned = save_model(directory / "learned", tied=tied, seed=2)
    prompt = Prompt("train/0/0", "", random_tokens(3), None, Sampling(4, 1.0, 24, seed=None))
    options = replace(engine_options(loaded, dtype), transport=transport)
    near, far = BOUNDS[dtype], STALE * BOUNDS[dtype]

    async with publishing_learner(learned, dtype, transport=transport) as learner:
        await asyncio.gather(learner.start(), worker.call(Engines.start, options))
        async with one_worker_fleet(transport, learner, worker) as fleet:
            await worker.call(Engines.generate, prompt)
            first = await learner.publish(version=1)
            assert await worker.call(Engines.probe_gap, first) > far, "stale weights would not be noticed"
            if tied and dtype == "float32":  # in bfloat16 vLLM packs weights on some CPUs only
                await worker.call(Engines.reload_as_vllm_does, learned)
                assert await worker.call(Engines.probe_gap, first) > far, (
                    "vLLM does not need `_repack_tied_head` any more"
                )
            assert await fleet.serve(first, up_to_date=False) < near
            answer = await worker.call(Engines.generate, prompt)
            assert sampling_gap(answer, load_policy(learned, dtype)) < near
            assert {(response.min_version, response.max_version) for response in answer.responses} == {(1, 1)}

            await learner.learn([batch()])
            second = await learner.publish(version=2)
            assert await worker.call(Engines.probe_gap, second) > far
            if not transport.joins_processes:
                # On CPU no memory is given back; the rest is as on a GPU.
                assert await worker.call(Engines.sleep)
            assert await fleet.serve(second, up_to_date=True) < near
            awake = await worker.call(Engines.generate, prompt)
            assert {(response.min_version, response.max_version) for response in awake.responses} == {(2, 2)}

    assert not [name for name in await worker.call(Engines.stop) if "EngineCore" in name]
    assert not list(Path("/dev/shm").glob(f"*{options.run_id}*")), "the last worker deletes the weight files"


async def check_low_rank_updates(transport: WeightTransport, worker: Actor[Engines], directory: Path) -> None:
    """Check that only the adapters travel, and that the worker adds each version to the weights that it loaded."""
    base = save_model(directory / "base", tied=True, seed=1)
    options = replace(engine_options(base), transport=transport)
    _write_out_tied_head(base / "model.safetensors")
    prompt = Prompt("train/0/0", "", random_tokens(3), None, Sampling(4, 1.0, 24, seed=None))
    near, far = BOUNDS["float32"], STALE * BOUNDS["float32"]
    settings: dict[str, Any] = {"lora_rank": 4, "learning_rate": 0.01}

    async with publishing_learner(base, transport=transport, **settings) as learner:
        await asyncio.gather(learner.start(), worker.call(Engines.start, options))
        async with one_worker_fleet(transport, learner, worker) as fleet:
            before = await learner.publish(version=1)
            assert await fleet.serve(before, up_to_date=False) < near
            for version in (2, 3):
                await learner.learn([batch()])
                policy_version = await learner.publish(version)
                assert await worker.call(Engines.probe_gap, policy_version) > far, (
                    "stale weights would not be noticed"
                )
                assert await fleet.serve(policy_version, up_to_date=True) < near
                size = sum(4 * int(np.prod(tensor.shape)) for tensor in policy_version.layout)
                assert size < (base / "model.safetensors").stat().st_size / 4
        answer = await worker.call(Engines.generate, prompt)
        await learner.export(directory / "exported")
    assert sampling_gap(answer, load_policy(directory / "exported")) < near


def _write_out_tied_head(file: Path) -> None:
    """Add the tied output head to the file, as some models on the Hugging Face hub do."""
    weights = load_file(file)
    save_file(
        weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, file, {"format": "pt"}
    )
