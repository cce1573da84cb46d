"""The coordinator of broadcasts with simulated workers: broadcasts, pulls, and broken broadcasts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
import ray

from cluster.core.actor import Actor
from cluster.core.config import RolloutConfig
from cluster.core.types import LogprobGap, PolicyVersion
from cluster.core.weight_channel import ChannelSpec, OfferRequest
from cluster.core.weight_transport import CoordinatorContext, SupersededError, UpdateTarget
from rollout.weights.broadcast import BroadcastCoordinator, BroadcastRoute


@dataclass
class Learner:
    """A simulated learner with the weights of `version`. A broadcast succeeds if all members of the channel arrive."""

    version: int = 0
    specs: list[ChannelSpec] = field(default_factory=list)
    offered: list[int] = field(default_factory=list)
    arrived: set[int] = field(default_factory=set)
    """The ranks that arrived at the last channel."""
    meeting_point: tuple[str, int] = ("127.0.0.1", 1234)

    async def send(
        self, version: int, request: ChannelSpec | OfferRequest, *, during_step: bool = False
    ) -> Any:
        assert during_step == isinstance(request, OfferRequest), "only an offer may be asked for in a step"
        if isinstance(request, OfferRequest):
            return await self.offer(version)
        return await self.broadcast(request)

    async def broadcast(self, spec: ChannelSpec) -> str:
        self.specs.append(spec)
        self.arrived.clear()
        for _ in range(10):
            await asyncio.sleep(0)
        missing = set(range(1, spec.size)) - self.arrived
        return f"{missing} did not arrive" if missing else ""

    async def offer(self, version: int) -> PolicyVersion | None:
        self.offered.append(version)
        return published(version, weights="there") if version == self.version else None


def published(version: int, weights: Any = None) -> PolicyVersion:
    return PolicyVersion(version, weights, (), ())


@dataclass
class Worker:
    learner: Learner
    ranks: int = 1
    channel_breaks: bool = False
    taken: list[tuple[str, int]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return type("Method", (), {"remote": getattr(type(self), f"do_{name}").__get__(self)})

    async def do_update_weights(
        self, version: PolicyVersion, route: BroadcastRoute | None = None
    ) -> LogprobGap:
        if route is None:
            assert version.weights == "there"
            self.taken.append(("pull", version.version))
            return LogprobGap(0.0, 0.0)
        assert version.weights is None
        if self.channel_breaks:
            raise ray.exceptions.RayTaskError("update_weights", "", RuntimeError("the weight channel broke"))
        self.learner.arrived |= set(range(route.first_rank, route.first_rank + self.ranks))
        self.taken.append(("broadcast", version.version))
        return LogprobGap(0.0, 0.0)


@dataclass
class Scene:
    background: asyncio.TaskGroup
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rollout = RolloutConfig(weight_transport="broadcast", **self.settings)
        self.learner = Learner()
        self.events: list[str] = []
        self.under_test = self.coordinator()

    def coordinator(self) -> BroadcastCoordinator:
        return BroadcastCoordinator(
            CoordinatorContext(
                self.rollout.update_timeout_s,
                self.rollout.tensor_parallel_size,
                self.learner,
                self.events.append,
                self.background,
            )
        )

    def worker(self, **settings: Any) -> Worker:
        return Worker(self.learner, self.rollout.tensor_parallel_size, **settings)

    async def publish(
        self, version: int, serving: dict[str, Worker], others: dict[str, Worker] | None = None
    ) -> None:
        """Publish `version`, and bring it to the workers `serving` and `others`."""
        others = others or {}
        self.learner.version = version
        handing_out = asyncio.create_task(
            self.under_test.hand_out(published(version), tuple(serving), bool(others))
        )
        await asyncio.sleep(0)
        await asyncio.gather(
            *(self.bring(process, worker, version) for process, worker in (serving | others).items())
        )
        await handing_out

    async def bring(self, process: str, worker: Worker, version: int) -> LogprobGap:
        target = UpdateTarget(process.rpartition(".")[0], process, Actor(worker))
        return await self.under_test.bring(target, published(version))


@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
async def test_new_workers_pull_and_serving_workers_join_the_broadcast(tensor_parallel_size: int) -> None:
    async with asyncio.TaskGroup() as background:
        scene = Scene(background, {"tensor_parallel_size": tensor_parallel_size})
        a, b, c = scene.worker(), scene.worker(), scene.worker()
        await scene.publish(0, {}, {"rollout-0.0": a, "rollout-1.0": b})
        await scene.publish(1, {"rollout-0.0": a, "rollout-1.0": b})
        await scene.publish(2, {"rollout-0.0": a, "rollout-1.0": b}, {"rollout-2.0": c})
        assert a.taken == b.taken == [("pull", 0), ("broadcast", 1), ("broadcast", 2)]
        assert c.taken == [("pull", 2)]
        assert scene.learner.offered == [0, 2], "no worker needed version 1 from the object store"
        assert [spec.size for spec in scene.learner.specs] == [1 + 2 * tensor_parallel_size] * 2
        assert scene.learner.specs[-1].names == (
            "learner",
            *["rollout-0.0"] * tensor_parallel_size,
            *["rollout-1.0"] * tensor_parallel_size,
        )
        assert not scene.events


async def test_a_channel_lasts_as_long_as_its_processes() -> None:
    async with asyncio.TaskGroup() as background:
        scene = Scene(background)
        a, b = scene.worker(), scene.worker()
        for version, serving in enumerate(
            [
                {"rollout-0.0": a, "rollout-1.0": b},
                {"rollout-0.0": a, "rollout-1.0": b},
                {"rollout-0.0": a, "rollout-1.1": b},  # another process of the same member
                {"rollout-0.0": a},
                {"rollout-0.0": a},
            ]
        ):
            await scene.publish(version, serving)
        assert [(spec.number, spec.size) for spec in scene.learner.specs] == [
            (1, 3),
            (1, 3),
            (2, 3),
            (3, 2),
            (3, 2),
        ]


async def test_after_a_broken_broadcast_members_pull_and_the_next_version_has_a_new_channel() -> None:
    async with asyncio.TaskGroup() as background:
        scene = Scene(background)
        a, b = scene.worker(), scene.worker(channel_breaks=True)
        serving = {"rollout-0.0": a, "rollout-1.0": b}
        await scene.publish(1, serving)
        assert a.taken == [("broadcast", 1)]  # it had received the version before the other failed
        assert b.taken == [("pull", 1)]
        assert len(scene.events) == 1
        assert "weight version 1 could not be broadcast to rollout-0.0, rollout-1.0" in scene.events[0]
        b.channel_breaks = False
        await scene.publish(2, serving)
        assert a.taken[-1] == b.taken[-1] == ("broadcast", 2)
        assert [spec.number for spec in scene.learner.specs] == [1, 2]


async def test_a_lost_member_does_not_delay_the_others_forever() -> None:
    """The process that replaces it belongs to no channel, and pulls."""
    async with asyncio.TaskGroup() as background:
        scene = Scene(background)
        a, b = scene.worker(), scene.worker()
        scene.learner.version = 1
        handing_out = asyncio.create_task(
            scene.under_test.hand_out(published(1), ("rollout-0.0", "rollout-1.0"), False)
        )
        await asyncio.sleep(0)
        assert scene.under_test.expects("rollout-1.0", published(1))
        assert not scene.under_test.expects("rollout-1.1", published(1))
        await scene.bring("rollout-0.0", a, 1)
        await handing_out
        assert not scene.under_test.expects("rollout-1.0", published(1))
        await scene.bring("rollout-1.1", b, 1)
        assert b.taken == [("pull", 1)]
        assert len(scene.events) == 1


async def test_a_late_worker_waits_for_the_next_version_if_the_learner_has_trained_since() -> None:
    async with asyncio.TaskGroup() as background:
        scene = Scene(background)
        a, late = scene.worker(), scene.worker()
        await scene.publish(1, {"rollout-0.0": a})
        scene.learner.version = -1  # it is training
        with pytest.raises(SupersededError):
            await scene.bring("rollout-1.0", late, 1)
        assert late.taken == []
        await scene.publish(2, {"rollout-0.0": a}, {"rollout-1.0": late})
        assert late.taken == [("pull", 2)]


async def test_a_failure_of_the_learner_is_not_attributed_to_a_worker() -> None:
    class Failing(Learner):
        async def offer(self, version: int) -> PolicyVersion | None:
            raise RuntimeError("the learner is gone")

    with pytest.raises(ExceptionGroup) as ended:
        async with asyncio.TaskGroup() as background:
            scene = Scene(background)
            scene.learner = Failing()
            scene.under_test = scene.coordinator()
            await scene.bring("rollout-0.0", scene.worker(), 1)
    assert any("the learner is gone" in str(error) for error in ended.value.exceptions)
