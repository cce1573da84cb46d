"""The clock of a worker's silence: an update has its own deadline, and everything else the shorter one."""

from __future__ import annotations

import asyncio
import time

from rollout.fleet.silence import SilenceClock


def unanswered() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


async def test_silence_is_limited() -> None:
    clock = SilenceClock(silence_timeout_s=0.1, update_timeout_s=60.0)
    assert clock.limit == "rollout.silence_timeout_s"
    assert not await clock.answered(unanswered(), time.monotonic())


async def test_an_answer_ends_the_wait() -> None:
    clock, answer = SilenceClock(60.0, 60.0), unanswered()
    asyncio.get_running_loop().call_later(0.01, answer.set_result, None)
    assert await clock.answered(answer, time.monotonic())


async def test_an_update_may_be_silent_for_longer() -> None:
    clock, answer = SilenceClock(silence_timeout_s=0.05, update_timeout_s=60.0), unanswered()
    with clock.update():
        waiting = asyncio.ensure_future(clock.answered(answer, time.monotonic(), fraction=0.5))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        assert clock.limit == "rollout.update_timeout_s"
        answer.set_result(None)
        assert await waiting


async def test_an_update_that_begins_during_the_wait_counts_too() -> None:
    clock, answer = SilenceClock(silence_timeout_s=0.2, update_timeout_s=60.0), unanswered()
    waiting = asyncio.ensure_future(clock.answered(answer, time.monotonic()))
    await asyncio.sleep(0)
    with clock.update():
        await asyncio.sleep(0.5)
        assert not waiting.done()
        answer.set_result(None)
        assert await waiting


async def test_silence_counts_again_from_the_end_of_an_update() -> None:
    clock, asked_at = SilenceClock(silence_timeout_s=0.1, update_timeout_s=600.0), time.monotonic()
    with clock.update():
        waiting = asyncio.ensure_future(clock.answered(unanswered(), asked_at))
        await asyncio.sleep(0.2)
    ended_at = time.monotonic()
    assert not await waiting
    assert time.monotonic() - ended_at >= 0.1


async def test_an_update_that_never_ends_is_silence_in_the_end() -> None:
    clock = SilenceClock(silence_timeout_s=0.01, update_timeout_s=0.1)
    with clock.update():
        assert not await clock.answered(unanswered(), time.monotonic())
