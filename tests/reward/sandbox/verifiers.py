"""Verifiers that fail in every way, as users write them and as models provoke them. Run them only in a sandbox."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
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


def fill_shared_mapping() -> None:
    hoard = []
    while True:
        hoard.append(mmap.mmap(-1, 2**24))
        hoard[-1].write(b"x" * 2**24)


def fill_memfd() -> None:
    fds = []
    while True:
        fds.append(os.memfd_create("hoard"))
        os.write(fds[-1], b"x" * 2**24)


def fill_one_memfd() -> None:
    fd = os.memfd_create("hoard")
    while True:
        os.write(fd, b"x" * 2**24)


def fill_shared_files() -> None:
    hoard = []
    while True:
        hoard.append(tempfile.TemporaryFile(dir="/dev/shm"))
        hoard[-1].write(b"x" * 2**24)
        hoard[-1].flush()


def fill_children() -> None:
    """Six children take 64 MiB each, and none of them takes too much."""
    hoard = "import time; hoard = [b'x' * 2**20 for _ in range(64)]; time.sleep(600)"
    for _ in range(6):  # not by a fork, which may wait forever for a lock that another thread holds
        subprocess.Popen([sys.executable, "-S", "-c", hoard])
    time.sleep(600)


def die_of_a_realtime_signal() -> None:
    os.kill(os.getpid(), 35)


def kill_its_group() -> None:
    os.killpg(0, signal.SIGKILL)


def kill_its_keeper() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    hang()


def escape() -> Verdict:
    """Leave a program in a session of its own, without a parent and without an environment. Return its id."""
    program = (
        "import os, sys; os.fork() and os._exit(0); os.setsid(); print(os.getpid(), flush=True); os.close(1);"
    )
    program += "import time; time.sleep(600)"
    left = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={},
        stdout=subprocess.PIPE,
        check=True,
        start_new_session=True,
    )
    return Verdict("correct", 1.0, left.stdout.decode().strip(), "")


def escape_and_hang() -> None:
    """Leave a program, write its id into the file `program` of the temporary directory, and hang."""
    fd, name = tempfile.mkstemp()
    os.write(fd, (escape().answer or "").encode())
    os.rename(name, os.path.join(os.path.dirname(name), "program"))
    hang()


def escape_and_kill_its_keeper() -> None:
    """Leave a program, append its id to the file `ESCAPED` of the environment, and kill the keeper."""
    with open(os.environ["ESCAPED"], "a") as file:
        file.write(f"{escape().answer}\n")
    kill_its_keeper()


def leave_a_file() -> Verdict:
    """Return the directory of a temporary file that is left."""
    fd, name = tempfile.mkstemp()
    os.close(fd)
    return Verdict("correct", 1.0, os.path.dirname(name), "")


def escape_and_exit() -> None:
    escape()
    os._exit(3)


def flood_the_channel() -> None:
    """Write well-formed replies without verdicts, indefinitely."""
    from reward.sandbox.channel import frame

    body = b'{"verdicts": [], "done": false, "children": false}'
    while True:
        for fd in range(3, 100):
            for serial in range(2, 6):
                try:
                    if stat.S_ISSOCK(os.fstat(fd).st_mode):
                        os.write(fd, frame(serial, body))
                except OSError:
                    continue


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
        fill_shared_mapping,
        fill_memfd,
        fill_one_memfd,
        fill_shared_files,
        fill_children,
        die_of_a_realtime_signal,
        kill_its_group,
        kill_its_keeper,
        escape,
        escape_and_exit,
        escape_and_hang,
        escape_and_kill_its_keeper,
        leave_a_file,
        flood_the_channel,
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
        if isinstance(problem, list) and problem and problem[0] == "consumed":
            problem.clear()  # as a verifier may do that pops what it has read
        elif problem == []:
            raise ValueError("another response has consumed the problem")
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
