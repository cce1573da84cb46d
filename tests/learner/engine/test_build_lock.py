"""A lock whose owner was killed is removed; one whose owner lives is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from learner.engine.build_lock import operator_folder, remove_stale_lock

OWNER = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that compiles, as torch would."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def age(lock: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(lock, (then, then))


def test_a_lock_that_is_held_stays_however_old(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    age(tmp_path / "lock", 10_000)
    remove_stale_lock(tmp_path)
    assert (tmp_path / "lock").exists()


def test_after_its_owner_was_killed_it_is_removed_and_can_be_taken(
    tmp_path: Path, owner: subprocess.Popen[str]
) -> None:
    owner.kill()
    owner.wait()
    age(tmp_path / "lock", 10_000)
    remove_stale_lock(tmp_path)
    assert FileBaton(str(tmp_path / "lock")).try_acquire()


def test_a_young_one_is_waited_for_until_it_is_surely_stale(tmp_path: Path) -> None:
    """It may be another machine's, whose processes are not seen from here."""
    lock = tmp_path / "lock"
    lock.touch()
    remove_stale_lock(tmp_path, stale_after_s=0.5)
    assert not lock.exists()


def test_several_may_find_it_at_once(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    age(lock, 10_000)
    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(remove_stale_lock, tmp_path) for _ in range(8)]:
            each.result(timeout=30)
    assert not lock.exists()


def test_without_a_lock_nothing_happens(tmp_path: Path) -> None:
    remove_stale_lock(tmp_path / "never-built")


def test_it_is_looked_for_where_torch_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert operator_folder().parent == tmp_path
