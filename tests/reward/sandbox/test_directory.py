"""A verifier's directory and control group are deleted at the latest by the next process, unless their owner lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from reward.sandbox.cgroup import Cgroup
from reward.sandbox.directory import PREFIX, YOUNG_S, VerifierDirectory, remove_abandoned

OWNER = """
import sys, time
from reward.sandbox.cgroup import Cgroup
from reward.sandbox.directory import VerifierDirectory
directory = VerifierDirectory("owned")
(directory.path / "file").write_text("text")
Cgroup.create(directory.name, 2**30)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def grown_old(path: Path) -> Path:
    before = time.time() - 2 * YOUNG_S
    os.utime(path, (before, before), follow_symlinks=False)
    return path


def test_what_a_killed_process_has_left_is_deleted_when_it_is_dead(temporary: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    try:
        assert owner.stdout.readline() == "ready\n"
        left = grown_old(temporary / f"{PREFIX}owned")
        remove_abandoned()
        assert (left / "file").exists(), "its owner lives"
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait(30)
        owner.stdout.close()
    remove_abandoned()
    assert not left.exists()
    again = Cgroup.create(left.name, 2**30)  # None as well where no group can be made
    if again is not None:
        again.remove()


def test_young_and_foreign_things_stay(temporary: Path) -> None:
    target = temporary / "target"
    target.mkdir()
    (target / "file").write_text("text")
    link, file = temporary / f"{PREFIX}link", temporary / f"{PREFIX}file"
    link.symlink_to(target)
    file.write_text("text")
    young, other = temporary / f"{PREFIX}young", temporary / "other-1"
    young.mkdir()
    other.mkdir()
    for path in (link, file, other, target):
        grown_old(path)
    remove_abandoned()
    assert sorted(path.name for path in temporary.iterdir()) == sorted(
        path.name for path in (target, link, file, young, other)
    )
    assert (target / "file").exists()


def test_a_directory_is_deleted_once_and_its_name_is_free_again() -> None:
    directory = VerifierDirectory("1")
    directory.remove()
    other = VerifierDirectory("1")
    directory.remove()
    assert other.path.is_dir()
    other.remove()
    assert not other.path.exists()
