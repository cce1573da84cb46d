"""How versions come to workers, without any: who is sent one, who pulls, and what happens when a broadcast breaks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
import ray

from cluster.core.actor import Actor
from cluster.core.config import RolloutConfig
from cluster.core.types import PolicyVersion
from cluster.core.weight_channel import ChannelSpec, OfferRequest
from cluster.core.weight_transport import CoordinatorContext, SupersededError, UpdateTarget
from rollout.weights.broadcast import BroadcastCoordinator, BroadcastRoute


@dataclass
class Learner:
    """`version` is what it has; a broadcast goes well when all members came."""

    version: int = 0
    specs: list[ChannelSpec] = field(default_factory=list)
    offered: list[int] = field(default_factory=list)
    arrived: set[int] = field(default_factory=set)
    """Ranks that came to the last link."""
    meeting_point: tuple[str, int] = ("127.0.0.1", 1234)

    async def send(self, version: int, request: ChannelSpec | OfferRequest) -> Any:
        if isinstance(request, OfferRequest):
            return await self.offer(version)
        return await self.broadcast(request)

    async def broadcast(self, spec: ChannelSpec) -> str:
        self.specs.append(spec)
        self.arrived.clear()
        for _ in range(10):
            await asyncio.sleep(0)
        missing = set(range(1, spec.size)) - self.arrived
        return f"{missing} did not come" if missing else ""

    async def offer(self, version: int) -> PolicyVersion | None:
        self.offered.append(version)
        return policy(version, weights="there") if version == self.version else None


def policy(version: int, weights: Any = None) -> PolicyVersion:
    return PolicyVersion(version, weights, (), ())


@dataclass
class Worker:
    learner: Learner
    ranks: int = 1
    channel_breaks: bool = False
    taken: list[tuple[str, int]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return type("Method", (), {"remote": getattr(type(self), f"do_{name}").__get__(self)})

    async def do_update_weights(self, version: PolicyVersion, route: BroadcastRoute | None = None) -> float:
        if route is None:
            assert version.weights == "there"
            self.taken.append(("pull", version.version))
            return 0.0
        assert version.weights is None
        if self.channel_breaks:
            raise ray.exceptions.RayTaskError("update_weights", "", RuntimeError("the weight channel broke"))
        self.learner.arrived |= set(range(route.first_rank, route.first_rank + self.ranks))
        self.taken.append(("broadcast", version.version))
        return 0.0


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
        """And have all who are there take it."""
        others = others or {}
        self.learner.version = version
        handing_out = asyncio.create_task(
            self.under_test.hand_out(policy(version), tuple(serving), bool(others))
        )
        await asyncio.sleep(0)
        await asyncio.gather(
            *(self.bring(process, worker, version) for process, worker in (serving | others).items())
        )
        await handing_out

    async def bring(self, process: str, worker: Worker, version: int) -> float:
        target = UpdateTarget(process.rpartition(".")[0], process, Actor(worker))
        return await self.under_test.bring(target, policy(version))


@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
async def test_who_is_new_pulls_and_who_serves_is_sent_the_next(tensor_parallel_size: int) -> None:
    async with asyncio.TaskGroup() as background:
        scene = Scene(background, {"tensor_parallel_size": tensor_parallel_size})
        a, b, c = scene.worker(), scene.worker(), scene.worker()
        await scene.publish(0, {}, {"rollout-0.0": a, "rollout-1.0": b})
        await scene.publish(1, {"rollout-0.0": a, "rollout-1.0": b})
        await scene.publish(2, {"rollout-0.0": a, "rollout-1.0": b}, {"rollout-2.0": c})
        assert a.taken == b.taken == [("pull", 0), ("broadcast", 1), ("broadcast", 2)]
        assert c.taken == [("pull", 2)]
        assert scene.learner.offered == [0, 2], "nobody needed version 1 in the object store"
        assert [spec.size for spec in scene.learner.specs] == [1 + 2 * tensor_parallel_size] * 2
        assert not scene.events


async def test_a_link_lasts_as_long_as_its_processes() -> None:
    async with asyncio.TaskGroup() as background:
        scene = Scene(background)
        a, b = scene.worker(), scene.worker()
        for version, serving in enumerate(
            [
                {"rollout-0.0": a, "rollout-1.0": b},
                {"rollout-0.0": a, "rollout-1.0": b},
                {"rollout-0.0": a, "rollout-1.1": b},  # another process in the same place
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


async def test_when_a_broadcast_breaks_all_members_pull_and_the_next_has_a_new_link() -> None:
    async with asyncio.TaskGroup() as background:
        scene = Scene(background)
        a, b = scene.worker(), scene.worker(channel_breaks=True)
        serving = {"rollout-0.0": a, "rollout-1.0": b}
        await scene.publish(1, serving)
        assert a.taken == [("broadcast", 1)]  # had it all before the other failed
        assert b.taken == [("pull", 1)]
        assert len(scene.events) == 1
        assert "weight version 1 could not be broadcast to rollout-0.0, rollout-1.0" in scene.events[0]
        b.channel_breaks = False
        await scene.publish(2, serving)
        assert a.taken[-1] == b.taken[-1] == ("broadcast", 2)
        assert [spec.number for spec in scene.learner.specs] == [1, 2]


async def test_a_member_that_is_gone_holds_nobody_up_for_ever() -> None:
    """Its next process is in no link, and pulls."""
    async with asyncio.TaskGroup() as background:
        scene = Scene(background)
        a, b = scene.worker(), scene.worker()
        scene.learner.version = 1
        handing_out = asyncio.create_task(
            scene.under_test.hand_out(policy(1), ("rollout-0.0", "rollout-1.0"), False)
        )
        await asyncio.sleep(0)
        assert scene.under_test.expects("rollout-1.0", policy(1))
        assert not scene.under_test.expects("rollout-1.1", policy(1))
        await scene.bring("rollout-0.0", a, 1)
        await handing_out
        assert not scene.under_test.expects("rollout-1.0", policy(1))
        await scene.bring("rollout-1.1", b, 1)
        assert b.taken == [("pull", 1)]
        assert len(scene.events) == 1


async def test_who_comes_when_the_learner_has_moved_on_waits_for_the_next() -> None:
    async with asyncio.TaskGroup() as background:
        scene = Scene(background)
        a, late = scene.worker(), scene.worker()
        await scene.publish(1, {"rollout-0.0": a})
        scene.learner.version = -1  # it is learning
        with pytest.raises(SupersededError):
            await scene.bring("rollout-1.0", late, 1)
        assert late.taken == []
        await scene.publish(2, {"rollout-0.0": a}, {"rollout-1.0": late})
        assert late.taken == [("pull", 2)]


async def test_a_learner_that_fails_is_not_the_failure_of_a_worker() -> None:
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
