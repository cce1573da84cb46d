"""Locks between processes: one holder at a time, killed holders are replaced at once, live ones never.

Machines are simulated: a record with another boot id is one of another machine, and the file's time of last change is
its only sign of life.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core import files
from cluster.core.files import LockAttempt
from cluster.run_state import lock_file
from cluster.run_state.lock_file import Holder, LockFile, LockHeldError, is_held
from tests import PROJECT

HOLD = """
import sys, time
from pathlib import Path
from cluster.run_state.lock_file import LockFile
lock = LockFile.take(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
lock.release()
"""
RACE = """
import os, random, sys, time
from pathlib import Path
from cluster.run_state import lock_file
lock_file.TOUCH_S = 0.02
if sys.argv[5] == "each on its own machine":
    lock_file.CONFIRM_S, lock_file.STALE_AFTER_S = 0.3, 4.0
    lock_file.attempt_lock = lambda _: lock_file.LockAttempt.TAKEN  # local to each machine
    lock_file._machine = lambda: (str(os.getpid()), "")
path, diary, draw = Path(sys.argv[1]), open(sys.argv[2], "a"), random.Random(int(sys.argv[3]))
end = time.monotonic() + float(sys.argv[4])
while time.monotonic() < end:
    try:
        lock = lock_file.LockFile.take(path)
    except lock_file.LockHeldError:
        time.sleep(draw.uniform(0, 0.01))
        continue
    print("enter", os.getpid(), file=diary, flush=True)
    time.sleep(draw.uniform(0, 0.02))
    lock.check()
    print("leave", os.getpid(), file=diary, flush=True)
    lock.release()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / ".demo.lock"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a minute pass in 0.6 s."""
    for name in (
        "TOUCH_S",
        "STALE_AFTER_S",
        "CONFIRM_S",
        "PATIENCE_S",
        "TOLD_AFTER_S",
        "LONGEST_WAIT_S",
        "_POLL_S",
    ):
        monkeypatch.setattr(lock_file, name, getattr(lock_file, name) / 100)


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until its stdin ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def written_by(path: Path, age_s: float = 0.0, **changes: object) -> None:
    """Write the lock of another process, which was touched `age_s` ago."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(replace(Holder.present(), **changes))))  # type: ignore[arg-type]
    touched(path, age_s)


def touched(path: Path, age_s: float) -> None:
    then = time.time() - age_s
    os.utime(path, (then, then))


# --- one machine


def test_a_lock_is_taken_given_back_and_leaves_nothing(path: Path) -> None:
    for _ in range(3):
        lock = LockFile.take(path)
        lock.check()
        assert is_held(path)
        lock.release()
        assert list(path.parent.iterdir()) == []


def test_a_live_holder_is_named_at_once(path: Path, holder: subprocess.Popen[str]) -> None:
    started = time.monotonic()
    with pytest.raises(LockHeldError, match=rf"process {holder.pid} on .*, since 20\d\d-") as refusal:
        LockFile.take(path)
    assert time.monotonic() - started < 1
    assert "\n" not in str(refusal.value)


def test_a_stopped_holder_still_holds(path: Path, holder: subprocess.Popen[str], hasty: None) -> None:
    """It does not touch its file, but it continues later."""
    holder.send_signal(signal.SIGSTOP)
    touched(path, 10 * lock_file.STALE_AFTER_S)
    try:
        with pytest.raises(LockHeldError):
            LockFile.take(path)
    finally:
        holder.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_holder_is_replaced_at_once(path: Path, holder: subprocess.Popen[str], reaped: bool) -> None:
    holder.kill()
    if reaped:
        holder.wait()
    else:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    started = time.monotonic()
    LockFile.take(path).release()
    assert time.monotonic() - started < 1


def test_a_process_id_that_is_used_again_is_not_the_holder(path: Path) -> None:
    written_by(path, started="1")
    LockFile.take(path).release()


def test_without_file_locks_the_record_decides(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_file, "attempt_lock", lambda _: LockAttempt.UNSUPPORTED)
    lock = LockFile.take(path)
    with pytest.raises(LockHeldError):
        LockFile.take(path)
    lock.release()
    written_by(path, started="1")
    LockFile.take(path).release()


@pytest.mark.parametrize(
    ("machines", "seed", "race_s"),
    [
        ("one machine", 0, 2),
        *(pytest.param("one machine", seed, 4, marks=pytest.mark.slow) for seed in range(1, 20)),
        *(pytest.param("each on its own machine", seed, 15, marks=pytest.mark.slow) for seed in range(3)),
    ],
)
def test_racing_processes_never_hold_it_together(
    tmp_path: Path, machines: str, seed: int, race_s: int
) -> None:
    """Some of them are killed at random moments. The diary has every entrance and exit, in order."""
    path, diary, draw = tmp_path / "lock", tmp_path / "diary", random.Random(seed)

    def racer(number: int) -> subprocess.Popen[bytes]:
        code = [sys.executable, "-c", RACE, str(path), str(diary), str(100 * seed + number)]
        code += [str(race_s), machines]
        return subprocess.Popen(code, cwd=PROJECT)

    racers = [racer(number) for number in range(4)]
    killed = set()
    for number in range(4, 8):
        time.sleep(draw.uniform(0.1, 0.3) * race_s)
        victim = racers[draw.randrange(len(racers))]
        victim.kill()
        victim.wait()
        killed.add(victim.pid)
        racers.append(racer(number))
    exits = {process.pid: process.wait(60) for process in racers}
    assert {code for pid, code in exits.items() if pid not in killed} == {0}
    inside: int | None = None
    entrances = 0
    for line in diary.read_text().splitlines():
        what, pid = line.split()
        if what == "enter":
            assert inside is None or inside in killed, f"{pid} entered while {inside} was inside"
            inside, entrances = int(pid), entrances + 1
        else:
            assert inside == int(pid)
            inside = None
    assert entrances > 5 * race_s
    assert not path.exists()


# --- other machines


def test_a_holder_on_another_machine_that_touches_its_file_is_respected(path: Path, hasty: None) -> None:
    """However far the clocks of the two machines, or of the file system, are apart."""
    lock = LockFile.take(path)
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"boot": "another", "host": "node-7"}))
    with pytest.raises(LockHeldError, match="on node-7"):
        LockFile.take(path)
    lock.release()


def test_a_record_of_another_machine_becomes_stale(path: Path, hasty: None) -> None:
    told: list[Holder | None] = []
    written_by(path, boot="another", host="node-7")
    started = time.monotonic()
    LockFile.take(path, told.append).release()
    assert time.monotonic() - started > 0.9 * lock_file.STALE_AFTER_S - 0.1
    assert [holder.host for holder in told if holder] == ["node-7"], "the caller is told once"


def test_an_old_record_of_another_machine_is_still_watched_for_a_while(path: Path, hasty: None) -> None:
    """The clock of the file server may have been set forward."""
    written_by(path, age_s=3600, boot="another")
    started = time.monotonic()
    LockFile.take(path).release()
    assert lock_file.CONFIRM_S <= time.monotonic() - started < lock_file.STALE_AFTER_S


def test_a_record_from_the_future_becomes_stale_too(path: Path, hasty: None) -> None:
    written_by(path, age_s=-3600, boot="another")
    LockFile.take(path).release()


def damaged(**changes: str) -> str:
    """Return a complete record with other values, which are JSON."""
    values = {"host": '"x"', "boot": '"b"', "namespace": '"n"', "process": "1", "started": '"1"'}
    values |= {"command": '"train"', "since": "1e9"} | changes
    return "{" + ", ".join(f'"{key}": {value}' for key, value in values.items()) + "}"


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", '{"host": "x"}', "[" * 100_000),
        *(damaged(since=since) for since in ("NaN", "1e300", "Infinity", "-1", '"now"', "null", "9" * 5000)),
        *(damaged(process=process) for process in ('"1"', "null", "[1]", "1.5")),
        *(damaged(command=command) for command in ("1", "null", '["train"]')),
    ],
)
def test_an_incomplete_record_counts_as_one_of_another_machine(path: Path, hasty: None, content: str) -> None:
    """Its process may have been killed after it made the file, or may be about to write the record."""
    path.parent.mkdir()
    path.write_text(content)
    assert is_held(path)
    LockFile.take(path).release()


CASES = st.fixed_dictionaries(
    {
        "same_machine": st.booleans(),
        "same_namespace": st.booleans(),
        "lives": st.booleans(),
        "flock": st.sampled_from(LockAttempt),
        "age_s": st.floats(-1e5, 1e5),
        "watched_s": st.sampled_from([0.0, 1.0, 4.0, 10.0, 50.0, 70.0]),
        "touched": st.booleans(),
    }
)


@given(case=CASES)
@settings(max_examples=400, deadline=None)
def test_a_live_holder_is_never_robbed_and_a_dead_one_is_found(
    tmp_path_factory: pytest.TempPathFactory, case: dict[str, object]
) -> None:
    """A live holder touches its file or, if it is stopped, has its file lock or is seen by its machine."""
    path = tmp_path_factory.mktemp("case") / "lock"
    me = Holder.present()
    written_by(
        path,
        age_s=case["age_s"],  # type: ignore[arg-type]
        boot=me.boot if case["same_machine"] else "another",
        namespace=me.namespace if case["same_namespace"] else "another",
        started=me.started if case["lives"] else "1",
    )
    now_s = [1000.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock_file, "attempt_lock", lambda _: case["flock"])
        patch.setattr(lock_file.time, "monotonic", lambda: now_s[0])
        examination = lock_file._Examination(path)
        examination.look()
        if not path.exists():
            assert case["same_machine"], "a file of another machine is watched first"
            assert case["same_namespace"]
            assert not case["lives"]
            return
        now_s[0] += float(case["watched_s"])  # type: ignore[arg-type]
        if case["touched"]:
            touched(path, float(case["age_s"]) - 1)  # type: ignore[arg-type]
        verdict, _ = examination.look()
    visible = case["same_machine"] and case["same_namespace"]
    if case["touched"] and not (visible and not case["lives"]):
        assert verdict is lock_file._Verdict.LIVES
    if visible and case["lives"] and case["flock"] is not LockAttempt.TAKEN:
        assert verdict is lock_file._Verdict.LIVES
    if case["watched_s"] == 70.0 and case["flock"] is not LockAttempt.BUSY and not case["touched"]:
        expected = visible and case["lives"] and case["flock"] is LockAttempt.UNSUPPORTED
        assert path.exists() == expected


# --- what happens to the file


def test_a_deleted_file_is_made_again(path: Path) -> None:
    lock = LockFile.take(path)
    path.unlink()
    lock.check()
    with pytest.raises(LockHeldError):
        LockFile.take(path)
    lock.release()
    assert not path.exists()


def test_a_holder_that_was_robbed_finds_out_and_leaves_the_file(path: Path) -> None:
    lock = LockFile.take(path)
    path.unlink()
    written_by(path, boot="another", host="node-7")
    with pytest.raises(LockHeldError, match=r"taken over by .* on node-7"):
        lock.check()
    lock.release()
    assert path.exists(), "only one's own file is deleted"


def test_a_holder_that_slept_does_not_take_a_lock_back_that_another_has_had(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has written the directory in the meantime."""
    lock = LockFile.take(path)
    path.unlink()
    now_s = lock_file._now_s() + lock_file.STALE_AFTER_S
    monkeypatch.setattr(lock_file, "_now_s", lambda: now_s)
    for _ in range(2):
        with pytest.raises(LockHeldError, match="was deleted"):
            lock.check()
    lock.release()


def test_without_its_directory_a_lock_is_lost(path: Path) -> None:
    lock = LockFile.take(path)
    path.unlink()
    path.parent.rmdir()
    with pytest.raises(LockHeldError, match="was deleted"):
        lock.check()
    lock.release()


def test_a_file_that_replaces_an_abandoned_one_is_put_back(path: Path) -> None:
    """Another machine may be quicker, between the last look and the deletion."""
    written_by(path, started="1")
    with open(path) as abandoned:
        path.unlink()
        lock = LockFile.take(path)
        lock_file._take_away(abandoned, path)
        lock.check()
        assert files.is_at(lock._file, path)
    lock.release()
    assert list(path.parent.iterdir()) == []


def test_the_record_has_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may contain secrets."""
    monkeypatch.setattr(sys, "argv", ["/x/launch.py", "train", "a.yaml", "task.options.url=http://x?key=1"])
    assert Holder.present().command == "launch.py train a.yaml"
