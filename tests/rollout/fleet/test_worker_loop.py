"""The loop that serves one worker process: updates, prompts, sleep, draining and failures. The process is simulated."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.actor import Actor
from cluster.core.config import RunConfig
from cluster.core.types import IndexedVerdicts, LogprobGap, PolicyVersion, Prompt, Sampled, ScoringRequest
from cluster.core.weight_transport import CoordinatorContext
from rollout.fleet.buffer import WorkBuffer
from rollout.fleet.context import FleetContext, ServedPolicy, WorkerRegistry
from rollout.fleet.scheduler import Scheduler, ScoringQueue
from rollout.fleet.state import FleetState, WorkerState
from rollout.fleet.supervisor import WeightGapError, WorkerLoop, first_cause, prompts_in_a_request
from rollout.weights.pull import PullCoordinator
from tests.builders import make_prompt, make_response, make_verdict

NAME, PROCESS = "rollout-0", "rollout-0.0"
NO_GAP = LogprobGap(0.0, 0.0)


@dataclass
class Method:
    """A method of an actor's handle."""

    call: Callable[..., Awaitable[Any]]

    def remote(self, *arguments: Any) -> Awaitable[Any]:
        return self.call(*arguments)


@dataclass
class Worker:
    """A simulated rollout worker. It answers prompts at once, unless it is `mute`."""

    gap: LogprobGap = NO_GAP
    mute: bool = False
    deaf: bool = False
    """True if calls of `collect` never return."""
    update_s: float = 0.0
    """The duration of an update. The worker answers nothing else meanwhile."""
    updating: bool = False
    calls: list[str] = field(default_factory=list)
    sampled: list[Sampled] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(type(self), f"do_{name}").__get__(self))

    async def do_update_weights(self, version: PolicyVersion) -> LogprobGap:
        self.calls.append(f"pull {version.version}")
        self.updating = True
        await asyncio.sleep(self.update_s)
        self.updating = False
        self.news.set()
        return self.gap

    async def do_sleep(self) -> None:
        self.calls.append("sleep")

    async def do_submit(self, prompts: Sequence[Prompt]) -> None:
        self.calls += [f"sample {prompt.id}" for prompt in prompts]
        if not self.mute:
            self.sampled += [
                Sampled(prompt.id, index, make_response())
                for prompt in prompts
                for index in range(prompt.sampling.responses)
            ]
            self.news.set()

    async def do_collect(self, max_wait_s: float, gather_s: float) -> list[Sampled]:
        if self.deaf:
            await asyncio.Event().wait()
        try:
            async with asyncio.timeout(max_wait_s):
                await self.news.wait()
        except TimeoutError:
            if not self.updating:
                return []
            await self.news.wait()
        self.news.clear()
        sampled, self.sampled = self.sampled, []
        return sampled


class Rewards:
    async def score(self, answers: Sequence[ScoringRequest]) -> AsyncIterator[IndexedVerdicts]:
        for index in range(len(answers)):
            yield [(index, make_verdict(1.0))]


@dataclass
class Scene:
    """A fleet with one worker that is up, a buffer with four prompts, and weights of version 1."""

    context: FleetContext
    buffer: WorkBuffer
    events: list[str]

    def publish(self, version: int) -> None:
        self.context.policy.publish(PolicyVersion(version, None, (), ()))
        self.context.state.published(version)
        self.context.scheduler.announce()

    async def serve(self, worker: Worker) -> None:
        await WorkerLoop(NAME, PROCESS, Actor(worker), self.context).run()


def scene(background: asyncio.TaskGroup, **rollout: Any) -> Scene:
    config = RunConfig.model_validate({"rollout": rollout, "learner": {"max_logprob_gap": 0.1}})
    scheduler, events = Scheduler(), list[str]()
    coordination = CoordinatorContext(config.rollout.update_timeout_s, 1, None, events.append, background)
    context = FleetContext(
        config=config,
        factory=cast(Any, None),
        scheduler=scheduler,
        scoring=ScoringQueue(Rewards(), scheduler, background),
        coordinator=PullCoordinator(coordination),
        state=FleetState(1, 3),
        policy=ServedPolicy(),
        registry=WorkerRegistry(),
        on_event=events.append,
        background=background,
    )
    context.state.started(NAME)
    buffer = WorkBuffer(4)
    for number in range(4):
        buffer.admit(make_prompt(f"train/0/{number}"))
    scheduler.feed(buffer)
    found = Scene(context, buffer, events)
    found.publish(1)
    return found


async def test_a_worker_updates_before_it_samples_and_ends_when_it_is_drained() -> None:
    async with asyncio.TaskGroup() as background:
        there, worker = scene(background, prompts_per_request=2, inflight_prompts_per_worker=2), Worker()
        serving = background.create_task(there.serve(worker))
        await there.context.scheduler.wait_until(lambda: there.buffer.scored_groups == 4)
        assert worker.calls == ["pull 1", *(f"sample train/0/{number}" for number in range(4))]
        there.publish(2)
        await there.context.scheduler.wait_until(lambda: there.context.state.healthy == 1)
        assert worker.calls[-1] == "pull 2"
        there.context.state.drain(NAME)
        there.context.scheduler.announce()
        await serving
    assert there.context.state[NAME].state is WorkerState.DRAINING


async def test_an_update_may_take_longer_than_silence_and_no_longer_than_its_own_deadline() -> None:
    async with asyncio.TaskGroup() as background:
        there, worker = scene(background, silence_timeout_s=0.1, update_timeout_s=60.0), Worker(update_s=0.5)
        serving = background.create_task(there.serve(worker))
        await there.context.scheduler.wait_until(lambda: there.buffer.scored_groups == 4)
        there.context.state.drain(NAME)
        there.context.scheduler.announce()
        await serving
    assert there.events == []
    async with asyncio.TaskGroup() as background:
        there = scene(background, silence_timeout_s=0.1, update_timeout_s=0.4)
        with pytest.raises(ExceptionGroup) as lost:
            await there.serve(Worker(update_s=60.0))
    assert "rollout.update_timeout_s" in str(first_cause(lost.value))


@given(st.integers(1, 5000), st.integers(1, 64), st.integers(1, 8))
def test_many_prompts_are_distributed_evenly_in_few_requests(waiting: int, workers: int, least: int) -> None:
    """The workers request prompts in turn."""
    first, taken, requests, left = prompts_in_a_request(waiting, workers, least), [0] * workers, 0, waiting
    while left:
        request = min(left, prompts_in_a_request(left, workers, least))
        taken[requests % workers] += request
        left -= request
        requests += 1
    assert max(taken) - min(taken) <= first + least
    assert requests <= min(math.ceil(waiting / least), workers * 8 * (1 + math.log2(1 + waiting / workers)))


async def test_a_sleeping_worker_leases_no_prompts_until_a_version_is_published() -> None:
    async with asyncio.TaskGroup() as background:
        there, worker = scene(background), Worker()
        there.context.policy.rest()
        serving = background.create_task(there.serve(worker))
        await there.context.scheduler.wait_until(lambda: bool(there.context.registry.asleep))
        there.context.scheduler.announce()
        for _ in range(20):
            await asyncio.sleep(0)
        assert worker.calls == ["pull 1", "sleep"], "it must sleep once, although four prompts wait"
        assert there.context.registry.asleep == {PROCESS}
        there.publish(2)
        await there.context.scheduler.wait_until(lambda: there.buffer.scored_groups == 4)
        assert worker.calls[2:4] == ["pull 2", "sample train/0/0"]
        there.context.state.drain(NAME)
        there.context.scheduler.announce()
        await serving


async def test_a_draining_worker_finishes_its_prompts() -> None:
    async with asyncio.TaskGroup() as background:
        there, worker = (
            scene(background, prompts_per_request=1, inflight_prompts_per_worker=1),
            Worker(mute=True),
        )
        serving = background.create_task(there.serve(worker))
        await there.context.scheduler.wait_until(lambda: there.buffer.leases(PROCESS) == 1)
        there.context.state.drain(NAME)
        there.context.scheduler.announce()
        await asyncio.sleep(0)
        assert not serving.done()
        for index in range(2):
            worker.sampled.append(Sampled("train/0/0", index, make_response()))
        worker.news.set()
        await serving
    assert there.buffer.scored_groups == 1
    assert there.buffer.waiting_prompts == 3, "it must not lease further prompts"


@pytest.mark.parametrize(
    ("worker", "kind", "says"),
    [
        (
            Worker(LogprobGap(0.2, 0.5)),
            WeightGapError,
            "is 0.2 on average and 0.5 at most away from the learner's",
        ),
        (
            Worker(LogprobGap(0.05, 1.5)),
            WeightGapError,
            "learner.max_logprob_gap: 0.1 on average, 1 at most)",
        ),
        (Worker(LogprobGap(math.nan, math.nan)), WeightGapError, "is nan on average"),
        (Worker(deaf=True), TimeoutError, "any sign of life of rollout-0"),
        (
            Worker(mute=True),
            TimeoutError,
            "did not answer prompts train/0/0, train/0/1, train/0/2, train/0/3",
        ),
    ],
    ids=["other weights", "one layer of other weights", "no weights", "deaf", "mute"],
)
async def test_a_failing_worker_is_lost(worker: Worker, kind: type[Exception], says: str) -> None:
    worker.news = asyncio.Event()
    async with asyncio.TaskGroup() as background:
        limits = {"silence_timeout_s": 0.2, "request_timeout_s": 0.1 if worker.mute else 60.0}
        there = scene(background, **limits)
        with pytest.raises(ExceptionGroup) as lost:
            await there.serve(worker)
    cause = first_cause(lost.value)
    assert isinstance(cause, kind)
    assert says in str(cause)
    assert there.buffer.scored_groups == 0
    if worker.deaf:
        assert there.context.state[NAME].state is WorkerState.SUSPECT
        (event,) = there.events
        found = re.fullmatch(r"rollout-0 has not answered for (\d+\.\d) s", event)
        assert found, event
        assert float(found[1]) >= 0.1, "half of the time-out has passed"
