"""Scaling requests to a live run: the answers, and the loss of the mailbox.

tests/integration/test_fleet_drills.py sends requests in a Ray cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from cluster.core.actor import Actor
from cluster.training import control as run_control
from cluster.training.control import Mailbox, _resize, answering
from rollout.fleet.state import FleetState, Resizing


@dataclass
class Fleet:
    """A fleet of two workers, in a cluster with slots for `free_slots` more."""

    free_slots: int
    state: FleetState = field(default_factory=lambda: FleetState(2, 3))

    def resize(self, workers: int) -> Resizing:
        return self.state.resize(workers)


@pytest.mark.parametrize(
    ("free", "workers", "answer"),
    [
        (9, 3, "rollout workers: 2 → 3; starting rollout-2"),
        (1, 3, "rollout workers: 2 → 3; starting rollout-2"),
        (0, 1, "rollout workers: 2 → 1"),
        (0, 2, "rollout workers: 2 → 2"),
        (
            1,
            4,
            "rollout workers: 2 → 4; starting rollout-2, rollout-3 (the cluster has resources for 1 of them now; the "
            "others start when there are more)",
        ),
    ],
)
def test_the_answer_names_the_change_and_the_workers_that_must_wait(
    free: int, workers: int, answer: str
) -> None:
    assert _resize(cast(Any, Fleet(free)), workers).startswith(answer)


@dataclass
class Method:
    """A method of an actor."""

    remote: Callable[..., Awaitable[Any]]


class LocalMailbox:
    """A handle of a mailbox in this process. The methods in `failing` fail, and those in `hanging` never end."""

    def __init__(self, failing: tuple[str, ...] = (), hanging: tuple[str, ...] = ()) -> None:
        self._mailbox = Mailbox()
        self._failing, self._hanging = failing, hanging

    def __getattr__(self, name: str) -> Method:
        async def call(*arguments: Any) -> Any:
            if name in self._failing:
                raise ConnectionError(f"{name}: the node is gone")
            if name in self._hanging:
                await asyncio.Event().wait()
            return await getattr(self._mailbox, name)(*arguments)

        return Method(call)


UNREACHABLE = "launch.py scale can no longer reach this run"
NO_MORE = f"{UNREACHABLE}: next_request: the node is gone"
NOT_CLOSED = "the run's mailbox was not closed"


@pytest.mark.parametrize(
    ("mailbox", "warnings"),
    [
        (LocalMailbox(), []),
        (LocalMailbox(failing=("next_request",)), [NO_MORE]),
        (
            LocalMailbox(failing=("close",)),
            [f"{NOT_CLOSED}: close: the node is gone", f"{NOT_CLOSED} within"],
        ),
        (
            LocalMailbox(failing=("next_request", "close")),
            [NO_MORE, f"{NOT_CLOSED}: close: the node is gone"],
        ),
        (LocalMailbox(hanging=("close",)), [f"{NOT_CLOSED} within"]),
    ],
    ids=["no failure", "reading fails", "closing fails", "both fail", "closing hangs"],
)
async def test_a_run_continues_without_its_mailbox_and_warns(
    mailbox: LocalMailbox, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_control, "CLOSE_TIMEOUT_S", 0.05)
    shown: list[str] = []
    async with answering(Actor(mailbox), cast(Any, Fleet(9)), pytest.fail, shown.append):
        await asyncio.sleep(0)
    assert len(shown) == len(warnings), shown
    assert all(line.startswith(start) for line, start in zip(shown, warnings, strict=True)), shown
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_run_warns_at_once_when_it_can_no_longer_be_reached() -> None:
    warnings: asyncio.Queue[str] = asyncio.Queue()
    mailbox: Actor[Mailbox] = Actor(LocalMailbox(failing=("answer",)))
    async with answering(mailbox, cast(Any, Fleet(9)), lambda text: None, warnings.put_nowait):
        request = asyncio.ensure_future(mailbox.call(Mailbox.ask, 3))
        async with asyncio.timeout(10):
            assert await warnings.get() == f"{UNREACHABLE}: answer: the node is gone"
        request.cancel()


async def test_an_impossible_size_is_refused_and_the_run_still_listens() -> None:
    mailbox: Actor[Mailbox] = Actor(LocalMailbox())
    fleet = Fleet(9)
    events: list[str] = []
    async with answering(mailbox, cast(Any, fleet), events.append, pytest.fail), asyncio.timeout(60):
        for workers in (10**20, 10**5000, 0, -1, 2.5, "many", None):
            answer = await mailbox.call(Mailbox.ask, workers)  # type: ignore[arg-type]
            assert answer.refused, workers
            assert "\n" not in answer.text
            assert len(answer.text) < 100
            assert fleet.state.size == 2
        assert not events
        answer = await mailbox.call(Mailbox.ask, 3)
        assert (answer.refused, fleet.state.size) == (False, 3)


def test_an_answer_names_a_few_workers_of_many() -> None:
    answer = _resize(cast(Any, Fleet(5000)), 4000)
    assert answer.endswith("rollout-9 and 3990 more")
    assert len(answer) < 200
