"""Changes a live run on request: `launch.py scale` writes to a mailbox in the run's Ray cluster, and the run reads it.

    launch.py scale ──ask(workers)──▶ Mailbox (a named actor) ──next_request──▶ the run
                    ◀─────────────── answer ─────────────────◀──answer──────────

The mailbox ends with the run, so a mailbox that can be found belongs to a live run.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from cluster.core.actor import Actor
from cluster.core.failures import trimmed
from cluster.runtime.auth import token_sources
from cluster.runtime.connect import loopback_kept, probe
from rollout.fleet.fleet import RolloutFleet

NAMESPACE = "hpo-trainer"
CLOSE_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
"""The longest wait for the run's answer to a request."""
MOST_NAMES = 8
"""The number of workers that an answer names."""


class RunIsLiveError(RuntimeError):
    """A run with this name is already live in the cluster."""


class ScalingRefusedError(RuntimeError):
    """The run refused the requested number of rollout workers. The message gives the reason."""


class NoLiveRunError(RuntimeError):
    """No run with this name is live in the cluster, or the cluster does not exist."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to change the number of rollout workers."""

    number: int
    rollout_workers: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The run's answer to a request, as a sentence for the user."""

    text: str
    refused: bool = False


class Mailbox:
    """The requests to a run and its answers. An async Ray actor."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._requests: asyncio.Queue[Request | None] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[Answer]] = {}

    async def ask(self, rollout_workers: int) -> Answer:
        """Request `rollout_workers` workers. Return the run's answer.

        Raises:
            TimeoutError: if the run does not answer.
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
        """Wait for the next request and return it, or None if the mailbox is closed."""
        return await self._requests.get()

    async def close(self) -> None:
        """Tell the reader that no more requests follow."""
        await self._requests.put(None)

    async def answer(self, request: Request, answer: Answer) -> None:
        """Deliver `answer` to the caller of `ask`, if it still waits."""
        if request.number in self._answers:
            self._answers[request.number].set_result(answer)


@asynccontextmanager
async def listening(
    run_name: str, fleet: RolloutFleet, on_event: Callable[[str], None], on_warning: Callable[[str], None]
) -> AsyncIterator[None]:
    """Create the run's mailbox and carry out requests while the block runs. If the mailbox is lost the run continues,
    and `on_warning` reports it.

    Raises:
        RunIsLiveError: if another run in this cluster has the same name.
    """
    mailbox_class = ray.remote(Mailbox).options(
        name=run_name, namespace=NAMESPACE, num_cpus=0, max_restarts=-1, max_task_retries=-1
    )
    try:
        mailbox: Actor[Mailbox] = Actor(mailbox_class.remote())
    except ValueError as error:
        raise RunIsLiveError(
            f"a run with the name {run_name} is already live in this Ray cluster; choose another name"
        ) from error
    try:
        async with answering(mailbox, fleet, on_event, on_warning):
            yield
    finally:
        ray.kill(mailbox.handle)


@asynccontextmanager
async def answering(
    mailbox: Actor[Mailbox],
    fleet: RolloutFleet,
    on_event: Callable[[str], None],
    on_warning: Callable[[str], None],
) -> AsyncIterator[None]:
    """Carry out the requests in an existing `mailbox` while the block runs, and close the mailbox at the end."""
    listener = asyncio.create_task(_listen(mailbox, fleet, on_event))
    listener.add_done_callback(
        partial(_warn_on_failure, on_warning, "launch.py scale can no longer reach this run")
    )
    try:
        yield
    finally:
        closing = asyncio.ensure_future(mailbox.call(Mailbox.close))
        closing.add_done_callback(partial(_warn_on_failure, on_warning, "the run's mailbox was not closed"))
        # Ray prints a message on the terminal if an actor is killed during a call, so wait for both calls.
        _, late = await asyncio.wait([closing, listener], timeout=CLOSE_TIMEOUT_S)
        for task in late:
            task.cancel()
        if late:
            on_warning(f"the run's mailbox was not closed within {CLOSE_TIMEOUT_S:g} s")
            await asyncio.wait(late)


async def _listen(mailbox: Actor[Mailbox], fleet: RolloutFleet, on_event: Callable[[str], None]) -> None:
    while (request := await mailbox.call(Mailbox.next_request)) is not None:
        try:
            answer = Answer(_resize(fleet, request.rollout_workers))
            on_event(answer.text)
        except ValueError as error:
            answer = Answer(str(error), refused=True)
        await mailbox.call(Mailbox.answer, request, answer)


def _warn_on_failure(on_warning: Callable[[str], None], what: str, task: asyncio.Future[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        on_warning(f"{what}: {trimmed(error)}")


def _resize(fleet: RolloutFleet, workers: int) -> str:
    """Resize the fleet. Return a description of the change.

    Raises:
        ValueError: if the fleet cannot have this size.
    """
    before, free_slots = fleet.state.size, fleet.free_slots
    change = fleet.resize(workers)
    answer = f"rollout workers: {before} → {fleet.state.size}" + "".join(
        f"; {what} {_listed(names)}"
        for what, names in (("starting", change.added), ("draining", change.drained))
        if names
    )
    if len(change.added) > free_slots:
        answer += (
            f" (the cluster has resources for {free_slots} of them now; the others start when there are more)"
        )
    return answer


def _listed(names: Sequence[str]) -> str:
    """Return the first names, and how many follow."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def scale(run_directory: Path, rollout_workers: int, address: str | None) -> str:
    """Ask the live run of `run_directory` to change its number of rollout workers. Return its answer.

    Args:
        run_directory: the run's directory. The last part of its path is the run's name.
        rollout_workers: the requested number. The run refuses one that no fleet can have.
        address: the address of the run's Ray cluster; None if it is unknown.

    Raises:
        NoLiveRunError: if no such run is live.
        ScalingRefusedError: if the run refuses the number.
        TimeoutError: if the run does not answer.
    """
    name = run_directory.absolute().name
    if address is None:
        raise NoLiveRunError(
            f"{run_directory} does not contain the address of its Ray cluster. Check that it is the directory of a "
            "run, or give --address"
        )
    try:
        probe(address)
    except OSError as error:
        raise NoLiveRunError(
            f"no Ray cluster answers at {address}: the run {name} has ended, or its cluster has another --address"
        ) from error
    try:
        with loopback_kept():
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError) as error:
        raise NoLiveRunError(
            f"the server at {address} refuses this command. If it is the run's Ray cluster, it requires a token: "
            f"launch.py scale … --send-token sends the one from {token_sources()}"
        ) from error
    try:
        mailbox: Actor[Mailbox] = Actor(ray.get_actor(name, NAMESPACE))
        reference: Any = mailbox.call(Mailbox.ask, rollout_workers)
        answer: Answer = ray.get(reference, timeout=ANSWER_TIMEOUT_S + 10)
    except ValueError:
        raise NoLiveRunError(f"the Ray cluster at {address} has no live run with the name {name}") from None
    except ray.exceptions.ActorDiedError:
        raise NoLiveRunError(f"the run {name} has just ended") from None
    finally:
        ray.shutdown()
    if answer.refused:
        raise ScalingRefusedError(answer.text)
    return answer.text
