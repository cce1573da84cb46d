"""The frame of commands with actors: the first signal cancels the work, and its clean-up runs to its end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from cluster.core import ending
from cluster.runtime.signals import Terminated, answer_signals
from cluster.training.session import run_to_the_end

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    answer_signals(forced_after_s=600)
    yield
    ending.take_time()
    for number, handler in handlers.items():
        signal.signal(number, handler)


async def work(cleaned: list[str], signals: list[signal.Signals]) -> None:
    """Send one signal at the beginning, and the others during the clean-up, which waits for several things."""

    async def actor() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append("actor")

    first, *others = signals
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(actor())
            await asyncio.sleep(0.01)
            os.kill(os.getpid(), first)
            await asyncio.sleep(60)
    finally:
        for number in others:
            os.kill(os.getpid(), number)
            await asyncio.sleep(0.01)
        cleaned.append("work")


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("others", [[], [signal.SIGINT], [signal.SIGHUP, signal.SIGTERM, signal.SIGINT]])
def test_work_is_cancelled_once_and_cleaned_up(first: signal.Signals, others: list[signal.Signals]) -> None:
    cleaned: list[str] = []
    with pytest.raises(KeyboardInterrupt) as ended:
        run_to_the_end(work(cleaned, [first, *others]))
    assert cleaned == ["actor", "work"]
    assert isinstance(ended.value, Terminated) == (first is not signal.SIGINT)
    if isinstance(ended.value, Terminated):
        assert ended.value.name == first.name
    assert ending.is_hurried() == bool(others)


def test_the_result_and_the_first_failure_are_passed_on() -> None:
    async def result() -> int:
        return 3

    async def failure() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(60))
            raise OSError("the disk is full")

    assert run_to_the_end(result()) == 3
    with pytest.raises(OSError, match="the disk is full"):
        run_to_the_end(failure())
