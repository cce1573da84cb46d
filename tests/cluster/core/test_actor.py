"""Calls of actors are checked by mypy, and reach the method that they name."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.core.actor import Actor
from tests import PROJECT


class Counter:
    def __init__(self, start: int) -> None:
        self._value = start

    def add(self, number: int, times: int = 1) -> int:
        self._value += number * times
        return self._value

    async def later(self, number: int) -> str:
        return str(self._value + number)

    async def count(self, end: int) -> AsyncIterator[int]:
        for value in range(self._value, end):
            yield value


class Handle:
    """Stands in for Ray's handle: `handle.NAME.remote(...)` calls the method here."""

    def __init__(self, target: object) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)
        return type("Method", (), {"remote": staticmethod(lambda *a, **k: method(*a, **k))})


async def test_a_call_reaches_the_method_of_the_actors_own_class() -> None:
    """Also where the actor is of a class that stands in for the one that the call names."""

    class Doubling(Counter):
        def add(self, number: int, times: int = 1) -> int:
            return super().add(number, 2 * times)

    actor: Actor[Counter] = Actor(Handle(Doubling(10)))
    assert actor.call(Counter.add, 1, times=2) == 14  # type: ignore[comparison-overlap]
    assert await actor.call(Counter.later, 1) == "15"
    stream = actor.stream(Counter.count, 17)
    assert [value async for value in stream] == [14, 15, 16]
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("actor.call(Counter.ad, 1)", 'has no attribute "ad"'),
        ("actor.call(Counter.add, 'one')", "No overload variant"),
        ("actor.call(Counter.add)", "No overload variant"),
        ("actor.call(Other.run)", "No overload variant"),
        ("value: Awaitable[str] = actor.call(Counter.add, 1)", "No overload variant"),
    ],
)
def test_a_wrong_call_is_a_type_error(call: str, error: str, tmp_path: Path) -> None:
    file = tmp_path / "calls.py"
    file.write_text(
        "from collections.abc import Awaitable\n"
        "from cluster.core.actor import Actor\n"
        "class Counter:\n    def add(self, number: int) -> int:\n        return number\n"
        "class Other:\n    def run(self) -> int:\n        return 0\n"
        f"def wrong(actor: Actor[Counter]) -> None:\n    {call}\n"
        "def right(actor: Actor[Counter]) -> Awaitable[int]:\n    return actor.call(Counter.add, 1)\n",
        encoding="utf-8",
    )
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            str(PROJECT / "pyproject.toml"),
            "--no-pretty",
            str(file),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert error in process.stdout, process.stdout + process.stderr
    assert all(":11:" not in line for line in process.stdout.splitlines()), "the right call is an error too"
