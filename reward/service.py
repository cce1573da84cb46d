"""The reward service: actors that score responses, and the pool that distributes requests among them.

    RewardPool ─▶ RewardActor ─▶ scorer: a sandbox of verifier processes, a remote service, or both

A verifier that raises, or breaks its process, gives a verdict with the outcome "error". Such a response is counted and
excluded from its group's statistics; it does not get a reward of 0. A response that takes the verifier to its limit of
time or memory gets the outcome "limit", and counts as not correct.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from cluster.core.actor import Actor
from cluster.core.config import RewardConfig, TaskConfig
from cluster.core.types import IndexedVerdicts, ScoringRequest, Verdict
from reward.pace import Pace, Workload
from reward.registry import build_task
from reward.sandbox.pool import Sandbox
from reward.sandbox.spec import Limits, RunnerSpec
from reward.shaped_scorer import ShapedScorer
from reward.task import RemoteTask, Scorer

logger = logging.getLogger(__name__)

TRUNCATED = Verdict(outcome="incorrect", reward=0.0, answer=None, reason="truncated before its end")
_CLOSING_S = 10.0
_LINGER_S = 0.005
"""Verdicts that arrive within this time are sent in one message."""
_ATTEMPTS = 3


class RewardServiceError(RuntimeError):
    """No response can be scored; the message says why."""


class RewardPool:
    """Distributes requests to the reward actors in turn.

    Args:
        actors: the actors.
        timeout_s: the time that an actor may deliver nothing, beyond the time that a response may take.
        truncated_is_incorrect: whether truncated responses are incorrect, whatever they contain.
        pace: the pace of each actor, see `scoring_pace`.
    """

    def __init__(
        self,
        actors: Sequence[Actor[RewardActor]],
        timeout_s: float,
        truncated_is_incorrect: bool,
        pace: Pace | None = None,
    ) -> None:
        self._actors = actors
        pace = pace or scoring_pace(TaskConfig(), RewardConfig())
        loads = [(actor, index, Workload(pace, timeout_s)) for index, actor in enumerate(actors)]
        self._next = itertools.cycle(loads)
        self._truncated_is_incorrect = truncated_is_incorrect

    async def score(self, requests: Sequence[ScoringRequest]) -> AsyncIterator[IndexedVerdicts]:
        """Yield one verdict per request, as they become available.

        Truncated responses that count as incorrect are not sent to an actor.

        Raises:
            TimeoutError: if an actor delivers nothing for too long, or not all verdicts by the deadline.
            RewardServiceError: if nothing can be scored.
        """
        truncated = {
            index
            for index, request in enumerate(requests)
            if self._truncated_is_incorrect and request.finish_reason == "length"
        }
        if truncated:
            yield [(index, TRUNCATED) for index in truncated]
        missing = [index for index in range(len(requests)) if index not in truncated]
        # An actor that Ray restarts scores its requests again but groups the verdicts differently. Ray continues the
        # stream at the old position, so some verdicts may be lost; they are requested again.
        for _ in range(_ATTEMPTS):
            if not missing:
                return
            pairs = [(requests[index].problem, requests[index].text) for index in missing]
            left = set(missing)
            async for verdicts in self._score_with_next_actor(pairs):
                new = [(missing[i], verdict) for i, verdict in verdicts if missing[i] in left]
                left -= {index for index, _ in new}
                yield new
            missing = sorted(left)
        if missing:
            raise RewardServiceError(f"a reward actor left {len(missing)} responses without a verdict")

    async def _score_with_next_actor(
        self, pairs: Sequence[tuple[Any, str]]
    ) -> AsyncIterator[IndexedVerdicts]:
        from ray.exceptions import RayTaskError  # `make_scorer` below must not load Ray

        actor, number, load = next(self._next)
        deadline, missing = load.add(len(pairs)), len(pairs)
        stream = actor.stream(RewardActor.score, pairs)
        try:
            while True:
                answer = asyncio.ensure_future(_next_verdicts(stream))
                if not await _arrived(answer, deadline):
                    raise TimeoutError(
                        f"reward actor {number} did not score {len(pairs)} responses in time: it has delivered "
                        f"nothing for too long (reward.timeout_s, reward.verifier_timeout_s). {load}"
                    )
                verdicts = answer.result()
                if verdicts is None:
                    return
                load.delivered(len(verdicts))
                missing -= len(verdicts)
                yield verdicts
        except RayTaskError as error:
            raise RewardServiceError(f"no response can be scored: {error.cause}") from error
        finally:
            load.forget(missing)

    async def close(self) -> None:
        """Let the actors that still respond end their verifier processes. The caller kills the actors afterwards."""
        from ray.exceptions import RayError

        closing = [actor.call(RewardActor.close) for actor in self._actors]
        try:
            async with asyncio.timeout(_CLOSING_S):
                await asyncio.gather(*closing)
        except (RayError, TimeoutError) as error:
            logger.info("a reward actor could not end its verifier processes: %s", error)


async def _next_verdicts(stream: AsyncIterator[Awaitable[IndexedVerdicts]]) -> IndexedVerdicts | None:
    """Return the next verdicts of an actor's stream, or None at its end."""
    try:
        return await (await anext(stream))
    except StopAsyncIteration:
        return None


async def _arrived(answer: asyncio.Future[Any], deadline: Callable[[], float]) -> bool:
    """Wait for `answer` until the deadline, which may move while it is waited for. Return whether it is there."""
    try:
        while (left_s := deadline() - time.monotonic()) > 0 and not answer.done():
            await asyncio.wait({answer}, timeout=left_s)
        return answer.done()
    finally:
        answer.cancel()


class RewardActor:
    """Scores responses of many calls at a time.

    It holds no state that could be lost: Ray may restart it and repeat a call.
    """

    def __init__(
        self,
        task: TaskConfig,
        reward: RewardConfig,
        search_path: Sequence[str],
        variables: Mapping[str, str] | None = None,
    ) -> None:
        # The modules of a submitted job are in the working directory, which Ray has copied to this node.
        self._arguments = (task, reward, [*search_path, os.getcwd()])
        # Not put into the environment, which verifier processes inherit.
        self._variables = variables or {}
        self._scorer: Scorer | None = None
        self._starting = asyncio.Lock()

    async def score(self, requests: Sequence[tuple[Any, str]]) -> AsyncIterator[IndexedVerdicts]:
        """Yield one verdict per (problem, response) pair, as they become available.

        A verdict never waits for another one that hangs.

        Raises:
            RuntimeError: if nothing can be scored.
        """
        async with self._starting:
            if self._scorer is None:
                scorer = make_scorer(*self._arguments, environment=self._variables)
                await scorer.start()
                self._scorer = scorer
        failures: Counter[str] = Counter()
        missing = len(requests)
        async for verdicts in self._scorer.score(requests):
            failures.update(v.reason for _, v in verdicts if v.outcome in ("error", "limit"))
            missing -= len(verdicts)
            yield verdicts
            if missing:
                await asyncio.sleep(_LINGER_S)
        for reason, count in failures.items():
            logger.warning("no verdict on %d of %d responses: %s", count, len(requests), reason)

    async def close(self) -> None:
        """End the verifier processes."""
        async with self._starting:
            if self._scorer is not None:
                await self._scorer.close()


def make_scorer(
    task: TaskConfig,
    reward: RewardConfig,
    search_path: Sequence[str],
    check: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> Scorer:
    """Return the scorer of a configured task. It is not started yet.

    Args:
        task: the task whose responses are scored.
        reward: the limits of the verifier, and the number of its processes.
        search_path: directories that hold users' modules, in addition to `sys.path`.
        check: True for the single request that is made before a run.
        environment: the variables of `passed_variables`.

    Raises:
        ValueError: if the task's options do not say where its verdicts come from.
    """
    built = build_task(task.name, task.options)
    limits = Limits(timeout_s=reward.verifier_timeout_s, memory_mib=reward.verifier_memory_mib)

    def sandbox(factory: str, *arguments: Any) -> Sandbox:
        spec = RunnerSpec(factory, arguments, tuple(search_path))
        return Sandbox(spec, limits, 1 if check else reward.processes_per_worker)

    if not isinstance(built, RemoteTask):
        return sandbox("reward.runners:task_runner", task.name, task.options, reward.shaping)
    remote = built.scorer(check, environment)
    if not reward.shaping:
        return remote
    return ShapedScorer(remote, sandbox("reward.runners:shaping_runner", reward.shaping))


def passed_variables(task: TaskConfig) -> dict[str, str]:
    """Return the variables of this process's environment that the task's reward actors need, by name."""
    built = build_task(task.name, task.options)
    names = built.variables if isinstance(built, RemoteTask) else ()
    return {name: os.environ[name] for name in names if name in os.environ}


def scoring_pace(task: TaskConfig, reward: RewardConfig) -> Pace:
    """Return the slowest pace of a reward actor that works.

    Raises:
        ValueError: if the task's options do not say where its verdicts come from.
    """
    return make_scorer(task, reward, ()).pace


async def score_in_order(scorer: Scorer, requests: Sequence[tuple[Any, str]]) -> list[Verdict]:
    """Return one verdict per (problem, response) pair, in their order, when all are available."""
    verdicts: dict[int, Verdict] = {}
    async for arrived in scorer.score(requests):
        verdicts.update(arrived)
    return [verdicts[index] for index in range(len(requests))]
