"""Rollout workers without engines. They sleep as long as a response would take.

For the controller they behave as real workers: every call is a Ray call, responses are pickled and sent, and each
worker has its own heartbeat. In benchmarks many of them share a process, because hundreds of processes do not fit
into one machine's memory. In the tests (tests/simulated.py) each has its own process, which can be killed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cluster.core.actor import Actor
from cluster.core.types import (
    LOADED_VERSION,
    IndexedVerdicts,
    LogprobGap,
    PolicyVersion,
    Prompt,
    Response,
    Sampled,
    Verdict,
    VersionSpan,
)
from cluster.run_state.run_directory import RunDirectory

GOLDEN = 0.6180339887498949


def seconds_of(prompt_id: str, index: int, responses: int, shortest_s: float, longest_s: float) -> float:
    """Return the duration of a response. Durations are evenly spread between `shortest_s` and `longest_s`, so that any
    batch takes `longest_s`, up to a thousandth."""
    number = int(prompt_id.rpartition("/")[2]) * responses + index
    return shortest_s + (longest_s - shortest_s) * ((number * GOLDEN) % 1)


class SimulatedEngine:
    """The methods of `rollout.engine.worker.RolloutWorker`, in an async Ray actor or a part of one.

    Args:
        seconds: returns the duration of a response, given its prompt and its index in the group.
        respond: returns a response, given its index and the weight versions at its start and its end.
    """

    def __init__(
        self, seconds: Callable[[Prompt, int], float], respond: Callable[[int, int, int], Response]
    ) -> None:
        self._seconds = seconds
        self._respond = respond
        self._version = LOADED_VERSION
        self._sampled: list[Sampled] = []
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._sampling = 0
        self._asleep = False

    async def start(self) -> int:
        return os.getpid()

    async def sleep(self) -> None:
        """Sleep until the next update. Raise AssertionError if responses are in flight."""
        assert not self._sampling, "responses are in flight"
        self._asleep = True

    async def submit(self, prompts: Sequence[Prompt]) -> None:
        assert not self._asleep, "a sleeping engine cannot sample"
        loop = asyncio.get_running_loop()
        self._idle.clear()
        for prompt in prompts:
            self._sampling += prompt.sampling.responses
            for index in prompt.sampling.indexes:
                loop.call_later(self._seconds(prompt, index), self._end, prompt.id, index, self._version)

    def _end(self, prompt_id: str, index: int, began_under: int) -> None:
        self._sampled.append(Sampled(prompt_id, index, self._respond(index, began_under, self._version)))
        self._news.set()
        self._sampling -= 1
        if not self._sampling:
            self._idle.set()

    async def collect(self, max_wait_s: float, gather_s: float) -> list[Sampled]:
        try:
            async with asyncio.timeout(max_wait_s):
                await self._news.wait()
            async with asyncio.timeout(gather_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        self._news.clear()
        sampled, self._sampled = self._sampled, []
        return sampled

    async def update_weights(self, version: PolicyVersion, route: Any = None) -> LogprobGap:
        await version.weights
        self._version = version.version
        self._asleep = False
        return LogprobGap(0.0, 0.0)

    async def shut_down(self) -> None:
        pass


@dataclass(frozen=True)
class Engines:
    """The common parameters of the simulated engines of a benchmark."""

    response_tokens: int
    shortest_s: float
    longest_s: float

    def engine(self) -> SimulatedEngine:
        return SimulatedEngine(self._seconds, self._respond)

    def _seconds(self, prompt: Prompt, index: int) -> float:
        return seconds_of(prompt.id, index, prompt.sampling.responses, self.shortest_s, self.longest_s)

    def _respond(self, index: int, began_under: int, version: int) -> Response:
        tokens = self.response_tokens
        return Response(
            np.full(tokens, 7, dtype=np.int64),
            np.full(tokens, -1.0, dtype=np.float32),
            f"answer {index}",
            "stop",
            (VersionSpan(version, 0, tokens),),
        )


class EngineHost:
    """An async Ray actor with many workers in one process."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._workers: dict[str, SimulatedEngine] = {}

    async def call(self, name: str, method: str, *arguments: Any) -> Any:
        worker = self._workers.get(name)
        if worker is None:
            worker = self._workers[name] = self._engines.engine()
        if method == "update_weights":  # Ray resolves references among arguments, not inside of them
            return await worker.update_weights(*arguments)
        return await getattr(worker, method)(*arguments)

    async def cpu_s(self) -> float:
        """Return the processor time of this process so far."""
        return time.process_time()


@dataclass(frozen=True)
class _Call:
    host: ray.actor.ActorHandle
    name: str
    method: str

    def remote(self, *arguments: Any, **named: Any) -> Any:
        return self.host.call.remote(self.name, self.method, *arguments, *named.values())


@dataclass(frozen=True)
class _Handle:
    """A replacement of the actor handle of one worker."""

    host: ray.actor.ActorHandle
    name: str

    def __getattr__(self, method: str) -> _Call:
        return _Call(self.host, self.name, method)


@dataclass
class HostedWorkerFactory:
    """A replacement of `RayWorkerFactory`. Worker `rollout-N` is in host N modulo the number of hosts."""

    hosts: Sequence[ray.actor.ActorHandle]
    run_directory: RunDirectory

    @asynccontextmanager
    async def worker(self, name: str) -> AsyncIterator[Actor[Any]]:
        yield Actor(_Handle(self.hosts[int(name.rpartition("-")[2]) % len(self.hosts)], name))

    @property
    def logs(self) -> Path:
        return self.run_directory.logs

    def free_slots(self) -> int:
        return 0


class VerifierRunner:
    """A replacement of `reward.service.RewardActor` that takes no time."""

    async def score(self, answers: Sequence[tuple[Any, str]]) -> AsyncIterator[IndexedVerdicts]:
        yield [
            (
                index,
                Verdict("correct", 1.0, text, "")
                if text.endswith(("1", "3"))
                else Verdict("incorrect", 0.0, text, ""),
            )
            for index, (_, text) in enumerate(answers)
        ]

    async def close(self) -> None:
        pass
