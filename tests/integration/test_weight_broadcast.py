"""A real learner broadcasts weights to two real engines, and both recover from a broadcast that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.core.types import PolicyVersion, Prompt, Sampling
from cluster.core.weight_channel import ChannelSpec, OfferRequest
from cluster.core.weight_transport import WEIGHT_TRANSPORTS
from learner.engine.group import LearnerGroup
from rollout.weights.broadcast import BroadcastRoute
from tests.integration.engines import (
    Engines,
    actor,
    engine_options,
    load_policy,
    random_tokens,
    sampling_gap,
    save_model,
)
from tests.integration.listeners import reachable_listeners
from tests.integration.publishing import batch, publishing_learner

NEAR, FAR = 1e-4, 1e-3
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def engines(local_ray: None) -> list[ray.actor.ActorHandle]:
    return [actor(Engines).remote() for _ in range(2)]


@asynccontextmanager
async def broadcasting(
    engines: list[ray.actor.ActorHandle],
    model: Path,
    engine: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[LearnerGroup]:
    """Start engines, and a learner that keeps its published weights, with the same model."""
    engine_settings = replace(engine_options(model, transport="broadcast"), **engine or {})
    async with publishing_learner(model, transport=WEIGHT_TRANSPORTS["broadcast"], **settings) as learner:
        try:
            await asyncio.gather(learner.start(), *(one.start.remote(engine_settings) for one in engines))
            yield learner
        finally:
            await asyncio.gather(*(one.stop.remote() for one in engines))


def link(learner: LearnerGroup, number: int, size: int, timeout_s: float = 30.0) -> ChannelSpec:
    return ChannelSpec(*learner.meeting_point, number, size, timeout_s)


async def learned(learner: LearnerGroup, version: int) -> PolicyVersion:
    await learner.learn([batch()])
    return await learner.publish(version)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
async def test_engines_serve_the_broadcast_weights(
    engines: list[ray.actor.ActorHandle], tmp_path: Path, tied: bool
) -> None:
    """Both engines receive several versions over one channel, with responses in flight."""
    prompt = Prompt("train/0/0", "", random_tokens(3), None, Sampling(4, 1.0, 64, seed=None))
    async with broadcasting(engines, save_model(tmp_path / "model", tied=tied, seed=1)) as learner:
        spec = link(learner, 1, 3)
        for version in (1, 2):
            published = await learned(learner, version)
            assert published.weights is None
            assert min(await asyncio.gather(*(one.probe_gap.remote(published) for one in engines))) > FAR
            await engines[0].submit.remote([prompt])
            failure, *gaps = await asyncio.gather(
                learner.send(published.version, spec),
                *(
                    one.update_weights.remote(published, BroadcastRoute(spec, 1 + at))
                    for at, one in enumerate(engines)
                ),
            )
            assert failure == ""
            assert max(gap.largest for gap in gaps) < NEAR
            await engines[0].collect.remote(prompt.sampling.responses)
        answer = await engines[1].generate.remote(prompt)
        assert {(one.min_version, one.max_version) for one in answer.responses} == {(2, 2)}
        await learner.export(tmp_path / "exported")
    assert sampling_gap(answer, load_policy(tmp_path / "exported")) < NEAR


@pytest.mark.slow
async def test_adapters_are_broadcast_alone(engines: list[ray.actor.ActorHandle], tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", tied=True, seed=1)
    async with broadcasting(engines, base, lora_rank=4, learning_rate=0.01) as learner:
        spec = link(learner, 1, 3)
        for version in (1, 2):
            published = await learned(learner, version)
            assert {layout.name.rpartition(".")[2] for layout in published.layout} == {"left", "right"}
            assert await engines[0].probe_gap.remote(published) > FAR
            failure, *gaps = await asyncio.gather(
                learner.send(published.version, spec),
                *(
                    one.update_weights.remote(published, BroadcastRoute(spec, 1 + at))
                    for at, one in enumerate(engines)
                ),
            )
            assert failure == ""
            assert max(gap.largest for gap in gaps) < NEAR


@pytest.mark.slow
async def test_both_processes_of_an_engine_receive_the_broadcast(
    engines: list[ray.actor.ActorHandle], tmp_path: Path
) -> None:
    """With tensor parallelism an engine has two processes, each with its own rank. They can pull too."""
    model = save_model(tmp_path / "model", tied=True, seed=1)
    async with broadcasting(engines[:1], model, engine={"tensor_parallel_size": 2}) as learner:
        published = await learned(learner, 1)
        failure, gap = await asyncio.gather(
            learner.send(1, link(learner, 1, 3)),
            engines[0].update_weights.remote(published, BroadcastRoute(link(learner, 1, 3), 1)),
        )
        assert failure == ""
        assert gap.largest < NEAR
        await learned(learner, 2)
        offered = await learner.send(2, OfferRequest())
        assert offered is not None
        assert await engines[0].probe_gap.remote(offered) > FAR
        assert (await engines[0].update_weights.remote(offered)).largest < NEAR


async def test_workers_pull_after_a_broadcast_that_fails(
    engines: list[ray.actor.ActorHandle], tmp_path: Path
) -> None:
    """A member does not come. The wait is limited by the channel's timeout, the learner and the engines survive, and
    the next channel works. Members that leave in the middle are in tests/cluster/core/test_weight_channel.py."""
    prompt = Prompt("train/0/0", "", random_tokens(3), None, Sampling(2, 1.0, 16, seed=None))
    async with broadcasting(engines, save_model(tmp_path / "model", tied=True, seed=1)) as learner:
        published = await learned(learner, 1)
        spec = link(learner, 1, 4, timeout_s=3.0)
        failure, *results = await asyncio.gather(
            learner.send(published.version, spec),
            *(
                one.update_weights.remote(published, BroadcastRoute(spec, 1 + at))
                for at, one in enumerate(engines)
            ),
            return_exceptions=True,
        )
        assert failure
        assert any(isinstance(result, ray.exceptions.RayTaskError) for result in results)

        offered = await learner.send(1, OfferRequest())
        assert offered is not None
        gaps = await asyncio.gather(*(one.update_weights.remote(offered) for one in engines))
        assert max(gap.largest for gap in gaps) < NEAR

        published = await learned(learner, 2)
        assert await learner.send(1, OfferRequest()) is None, "the learner has replaced version 1"
        spec = link(learner, 2, 3)
        failure, *gaps = await asyncio.gather(
            learner.send(published.version, spec),
            *(
                one.update_weights.remote(published, BroadcastRoute(spec, 1 + at))
                for at, one in enumerate(engines)
            ),
        )
        assert failure == ""
        assert max(gap.largest for gap in gaps) < NEAR
        answer = await engines[0].generate.remote(prompt)
        assert {(one.min_version, one.max_version) for one in answer.responses} == {(2, 2)}
        assert reachable_listeners() == [], (
            "the learner's store, the channel and the engines use this machine only"
        )


@pytest.mark.slow
async def test_a_missing_worker_costs_the_others_only_time(
    engines: list[ray.actor.ActorHandle], tmp_path: Path
) -> None:
    async with broadcasting(engines, save_model(tmp_path / "model", tied=True, seed=1)) as learner:
        published = await learned(learner, 1)
        spec = link(learner, 1, 3, timeout_s=2.0)
        failure, missed = await asyncio.gather(
            learner.send(published.version, spec),
            engines[0].update_weights.remote(published, BroadcastRoute(spec, 1)),
            return_exceptions=True,
        )
        assert failure
        assert isinstance(missed, ray.exceptions.RayTaskError)
        offered = await learner.send(1, OfferRequest())
        assert (await engines[0].update_weights.remote(offered)).largest < NEAR
