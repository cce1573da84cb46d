"""Verifiers that fail in every way, as users write them and as models provoke them. Run them only in a sandbox."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cluster.core.types import Verdict

CORRECT = Verdict("correct", 1.0, "yes", "it says so")


def hang() -> None:
    while True:
        pass


def hang_in_c() -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")  # never returns to Python


def power_tower() -> None:
    print(len(str(int("9") ** 9**9)))


def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang()


def fork_and_hang() -> None:
    os.fork()
    hang()


def fork_and_return() -> Verdict | None:
    """Both processes return, the copy first, although it must not answer."""
    if os.fork() == 0:
        return Verdict("incorrect", 0.0, None, "a copy says so")
    time.sleep(0.3)
    return None


def leave_a_daemon() -> None:
    subprocess.Popen(["sleep", "600"], start_new_session=True)


def leave_a_daemon_and_exit() -> None:
    leave_a_daemon()
    os._exit(3)


def fork_bomb() -> None:
    while True:
        os.fork()


def memory_bomb() -> None:
    hoard = []
    while True:
        hoard.append(bytearray(2**24))


def exit_at_once() -> None:
    os._exit(3)


def crash() -> None:
    ctypes.string_at(0)


def alarm() -> None:
    signal.alarm(1)
    hang()


def flood_stdout() -> None:
    for _ in range(2000):
        print("x" * 100_000)
        os.write(2, b"y" * 100_000)


def close_everything() -> None:
    os.closerange(0, 4096)


def write_garbage() -> None:
    for fd in range(3, 4096):  # the tests themselves may have many files open
        try:
            os.write(fd, b"\xff" * 64)
        except OSError:
            continue


def forge_a_reply() -> None:
    """Write a well-formed reply that does not belong to the request."""
    from reward.sandbox.channel import frame

    body = b'{"verdicts": [[0, "correct", 1.0, "forged", ""]], "done": true, "children": false}'
    for fd in range(3, 4096):  # the tests themselves may have many files open
        try:
            os.write(fd, frame(10**6, body))
        except OSError:
            continue


def recurse() -> None:
    recurse()


def leave_a_thread() -> None:
    threading.Thread(target=hang).start()


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def raising(error: BaseException) -> Callable[[], None]:
    def deed() -> None:
        raise error

    return deed


DEEDS: dict[str, Callable[[], Any]] = {
    deed.__name__: deed
    for deed in (
        hang,
        hang_in_c,
        power_tower,
        ignore_sigterm,
        fork_and_hang,
        fork_and_return,
        leave_a_daemon,
        leave_a_daemon_and_exit,
        fork_bomb,
        memory_bomb,
        exit_at_once,
        crash,
        alarm,
        flood_stdout,
        close_everything,
        write_garbage,
        forge_a_reply,
        recurse,
        leave_a_thread,
    )
} | {
    "raise_value_error": raising(ValueError("not\na number")),
    "raise_system_exit": raising(SystemExit(0)),
    "raise_keyboard_interrupt": raising(KeyboardInterrupt()),
    "raise_unprintable": raising(Unprintable()),
    "sleep": lambda: time.sleep(0.05),
}
GIVEN: dict[str, Any] = {
    "give_none": None,
    "give_nan": Verdict("correct", float("nan"), None, ""),
    "give_an_unknown_outcome": Verdict("perhaps", 1.0, None, ""),  # type: ignore[arg-type]
    "give_a_huge_number": Verdict("correct", 10**400, None, ""),
    "give_an_unusable_text": Verdict("correct", 1.0, Unprintable(), ""),  # type: ignore[arg-type]
}


class Obedient:
    """Does what the response names and then finds it correct. Any other response is its own answer."""

    batched = False

    def score(self, problem: Any, response: str) -> Any:
        if response in GIVEN:
            return GIVEN[response]
        if response in DEEDS:
            return DEEDS[response]() or CORRECT
        return Verdict("incorrect", 0.0, response, f"scored by {os.getpid()}")

    def score_batch(self, problems: Sequence[Any], responses: Sequence[str]) -> Iterator[Any]:
        raise NotImplementedError


class ObedientInBatches(Obedient):
    """Scores batches in the same way. `one_too_few` loses a verdict; `late` hangs after all other verdicts."""

    batched = True

    def score_batch(self, problems: Sequence[Any], responses: Sequence[str]) -> Iterator[Any]:
        verdicts = [
            (place, self.score(problem, text))
            for place, (problem, text) in enumerate(zip(problems, responses, strict=True))
            if text != "late"
        ]
        yield verdicts[1:] if "one_too_few" in responses else verdicts
        while "late" in responses:
            pass


def one_by_one() -> Obedient:
    return Obedient()


def in_batches() -> Obedient:
    return ObedientInBatches()


def unbuildable() -> Obedient:
    raise ImportError("no module named nowhere")


def unbuildable_for_ever() -> Obedient:
    time.sleep(600)
    raise AssertionError


def unbuildable_for_memory() -> Obedient:
    memory_bomb()
    raise AssertionError
