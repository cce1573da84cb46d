"""How a live run is told to change: a mailbox in its Ray cluster, which `launch.py scale` writes to and the run reads.

    launch.py scale ──ask(workers)──▶ Mailbox (a named actor of the run) ◀──next_request── the run, which answers

The mailbox ends with the run, so one that can be found belongs to a run that lives.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray

from cluster.core.failures import trimmed
from cluster.runtime.auth import token_sources
from cluster.runtime.connect import probe
from rollout.fleet.fleet import RolloutFleet

NAMESPACE = "hpo-trainer"
CLOSE_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
"""How long who asked waits for the run to answer."""


class RunIsLiveError(RuntimeError):
    """A run of this name is live in the cluster already."""


class ScalingRefusedError(RuntimeError):
    """The run does not take this number of rollout workers; says why."""


class NoLiveRunError(RuntimeError):
    """There is no run of this name in the cluster, or no cluster."""


@dataclass(frozen=True, slots=True)
class Request:
    """Change the number of rollout workers."""

    number: int
    rollout_workers: int


@dataclass(frozen=True, slots=True)
class Answer:
    """In words."""

    text: str
    refused: bool = False


class Mailbox:
    """Requests to a run, and its answers. An async Ray actor."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._requests: asyncio.Queue[Request | None] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[Answer]] = {}

    async def ask(self, rollout_workers: int) -> Answer:
        """What the run says to it.

        Raises:
            TimeoutError: there is none.
        """
        request = Request(next(self._numbers), rollout_workers)
        self._answers[request.number] = asyncio.get_running_loop().create_future()
        await self._requests.put(request)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await self._answers[request.number]
        finally:
            del self._answers[request.number]

    async def next_request(self) -> Request | None:
        """None: there will be no more."""
        return await self._requests.get()

    async def close(self) -> None:
        await self._requests.put(None)

    async def answer(self, request: Request, answer: Answer) -> None:
        if request.number in self._answers:  # else nobody waits for it any more
            self._answers[request.number].set_result(answer)


@asynccontextmanager
async def listening(
    run_name: str, fleet: RolloutFleet, on_event: Callable[[str], None], on_warning: Callable[[str], None]
) -> AsyncIterator[None]:
    """Do what the run is asked to while the block runs. A run that can no longer be asked goes on, and `on_warning` is
    told.

    Raises:
        RunIsLiveError: another one in this cluster has the same name.
    """
    kind = ray.remote(Mailbox).options(
        name=run_name, namespace=NAMESPACE, num_cpus=0, max_restarts=-1, max_task_retries=-1
    )
    try:
        mailbox = kind.remote()
    except ValueError as error:
        raise RunIsLiveError(
            f"a run called {run_name} is live in this Ray cluster already; take another name"
        ) from error
    try:
        async with answering(mailbox, fleet, on_event, on_warning):
            yield
    finally:
        ray.kill(mailbox)


@asynccontextmanager
async def answering(
    mailbox: ray.actor.ActorHandle,
    fleet: RolloutFleet,
    on_event: Callable[[str], None],
    on_warning: Callable[[str], None],
) -> AsyncIterator[None]:
    """The same, of a mailbox that is there, and that the block's end closes."""
    listener = asyncio.create_task(_listen(mailbox, fleet, on_event))
    listener.add_done_callback(partial(_tell_failure, on_warning, "launch.py scale reaches this run no more"))
    try:
        yield
    finally:
        closing = asyncio.ensure_future(mailbox.close.remote())
        closing.add_done_callback(partial(_tell_failure, on_warning, "the run's mailbox was not closed"))
        # Of a call that is open when its actor is killed Ray would tell on the terminal.
        _, late = await asyncio.wait([closing, listener], timeout=CLOSE_TIMEOUT_S)
        for task in late:
            task.cancel()
        if late:
            on_warning(f"the run's mailbox was not closed within {CLOSE_TIMEOUT_S:g} s")
            await asyncio.wait(late)


async def _listen(
    mailbox: ray.actor.ActorHandle, fleet: RolloutFleet, on_event: Callable[[str], None]
) -> None:
    while (request := await mailbox.next_request.remote()) is not None:
        try:
            answer = Answer(_resize(fleet, request.rollout_workers))
            on_event(answer.text)
        except ValueError as error:
            answer = Answer(str(error), refused=True)
        await mailbox.answer.remote(request, answer)


def _tell_failure(on_warning: Callable[[str], None], what: str, task: asyncio.Future[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        on_warning(f"{what}: {trimmed(error)}")


def _resize(fleet: RolloutFleet, workers: int) -> str:
    """What was done, in words.

    Raises:
        ValueError: it is not done.
    """
    before, room = fleet.state.size, fleet.free_slots
    change = fleet.resize(workers)
    answer = f"rollout workers: {before} → {fleet.state.size}" + "".join(
        f"; {what} {', '.join(names)}"
        for what, names in (("starting", change.added), ("draining", change.drained))
        if names
    )
    if len(change.added) > room:
        answer += (
            f" (the cluster has room for {room} of them now; a worker without room starts when there is some)"
        )
    return answer


def scale(run_directory: Path, rollout_workers: int, address: str | None) -> str:
    """Tell the run that belongs to `run_directory` how many rollout workers it is to have. Returns its answer.

    Args:
        run_directory: its last part is the run's name.
        rollout_workers: at least 1.
        address: of the run's Ray cluster; None if it is not known.

    Raises:
        NoLiveRunError: there is none.
        ScalingRefusedError: the run does not do it.
        TimeoutError: the run does not answer.
    """
    name = run_directory.absolute().name
    if address is None:
        raise NoLiveRunError(
            f"{run_directory} does not say where its Ray cluster is: is it a run's directory? Give --address"
        )
    try:
        probe(address)
    except OSError as error:
        raise NoLiveRunError(
            f"there is no Ray at {address}: the run {name} has ended, or its --address is another"
        ) from error
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError) as error:
        raise NoLiveRunError(
            f"something listens at {address} but does not let this command in. If it is the run's Ray, it asks for a "
            f"token: RAY_AUTH_MODE=token launch.py scale … sends it the one of {token_sources()}"
        ) from error
    try:
        mailbox = ray.get_actor(name, NAMESPACE)
        answer = ray.get(mailbox.ask.remote(rollout_workers), timeout=ANSWER_TIMEOUT_S + 10)
    except ValueError:
        raise NoLiveRunError(f"no live run in the Ray cluster at {address} is called {name}") from None
    except ray.exceptions.ActorDiedError:
        raise NoLiveRunError(f"the run {name} ended just now") from None
    finally:
        ray.shutdown()
    if answer.refused:
        raise ScalingRefusedError(answer.text)
    return answer.text
