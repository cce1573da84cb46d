"""What a live run answers to who scales it, and that it outlives its mailbox. The way there and back is in
tests/integration/test_fleet_drills.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from cluster.training import control as run_control
from cluster.training.control import Mailbox, _resize, answering
from rollout.fleet.state import FleetState, Resizing


@dataclass
class Fleet:
    """Two workers, in a cluster that has slots for `free_slots` more."""

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
            "rollout workers: 2 → 4; starting rollout-2, rollout-3 (the cluster has room for 1 of them now; a worker "
            "without room starts when there is some)",
        ),
    ],
)
def test_the_answer_says_what_is_done_and_what_has_to_wait(free: int, workers: int, answer: str) -> None:
    assert _resize(cast(Any, Fleet(free)), workers).startswith(answer)


@dataclass
class Method:
    """Called as that of an actor is."""

    remote: Callable[..., Awaitable[Any]]


class LocalMailbox:
    """A mailbox in this process, of which the methods in `failing` fail, and those in `hanging` never end."""

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


NO_MORE = "launch.py scale reaches this run no more: next_request: the node is gone"
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
    ids=["sound", "not read", "not closed", "lost", "hangs"],
)
async def test_a_run_goes_on_without_its_mailbox_and_says_so(
    mailbox: LocalMailbox, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_control, "CLOSE_TIMEOUT_S", 0.05)
    told: list[str] = []
    async with answering(cast(Any, mailbox), cast(Any, Fleet(9)), pytest.fail, told.append):
        await asyncio.sleep(0)
    assert len(told) == len(warnings), told
    assert all(line.startswith(start) for line, start in zip(told, warnings, strict=True)), told
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_that_a_run_cannot_be_asked_any_more_is_told_at_once() -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    mailbox = LocalMailbox(failing=("answer",))
    async with answering(cast(Any, mailbox), cast(Any, Fleet(9)), lambda text: None, told.put_nowait):
        asking = asyncio.create_task(mailbox.ask.remote(3))
        async with asyncio.timeout(10):
            assert await told.get() == "launch.py scale reaches this run no more: answer: the node is gone"
        asking.cancel()
