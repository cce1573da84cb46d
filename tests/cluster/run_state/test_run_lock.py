"""One writer per run directory, by whatever name it is reached."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.run_state import lock_file
from cluster.run_state.lock_file import LockFile
from cluster.run_state.run_lock import RunDirectoryLostError, RunInUseError, lock_paths, run_lock


def test_the_lock_is_beside_the_directory_and_goes_with_the_block(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "demo"
    with run_lock(directory) as lock:
        lock.check()
        assert [entry.name for entry in (tmp_path / "runs").iterdir()] == [".demo.lock"]
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_second_writer_is_refused_with_the_first_one_and_the_remedy(tmp_path: Path) -> None:
    (path,) = lock_paths(tmp_path / "demo")
    held = LockFile.take(path)
    with (
        pytest.raises(
            RunInUseError, match=r"demo is in use by `.*` \(process \d+ on .*\): wait .* stop it"
        ) as refusal,
        run_lock(tmp_path / "demo"),
    ):
        pytest.fail("there are two writers")
    assert "\n" not in str(refusal.value)
    held.release()
    with run_lock(tmp_path / "demo"):
        pass


def test_an_inner_block_uses_the_lock_of_the_outer_one(tmp_path: Path) -> None:
    with run_lock(tmp_path / "demo") as outer:
        with run_lock(tmp_path / "demo") as inner:
            assert inner is outer
        outer.check()
        assert lock_file.is_held(lock_paths(tmp_path / "demo")[0])


def test_a_directory_that_is_renamed_or_deleted_stays_locked(tmp_path: Path) -> None:
    """As `--fresh` does with the earlier run."""
    (tmp_path / "demo").mkdir()
    with run_lock(tmp_path / "demo") as lock:
        (tmp_path / "demo").rename(tmp_path / "demo.1")
        shutil.rmtree(tmp_path / "demo.1")
        lock.check()
        assert lock_file.is_held(lock_paths(tmp_path / "demo")[0])


@pytest.mark.parametrize("first", ["real", "link", "other", "relative", "through"])
@pytest.mark.parametrize("second", ["real", "link", "other", "relative", "through"])
def test_all_names_of_a_directory_share_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk" / "demo").mkdir(parents=True)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(tmp_path / "disk" / "demo")
    (tmp_path / "runs" / "other").symlink_to(tmp_path / "disk" / "demo")
    (tmp_path / "folder").symlink_to(tmp_path / "disk")
    names = {
        "real": tmp_path / "disk" / "demo",
        "link": tmp_path / "runs" / "demo",
        "other": tmp_path / "runs" / "other",
        "relative": Path("runs/../disk/demo"),
        "through": tmp_path / "folder" / "demo",
    }
    assert set(lock_paths(names[first])) & set(lock_paths(names[second]))


def test_a_link_that_is_moved_aside_stays_locked(tmp_path: Path) -> None:
    """After `--fresh`, the name belongs to a new directory."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "demo").symlink_to(tmp_path / "disk")
    before = lock_paths(tmp_path / "demo")
    (tmp_path / "demo").rename(tmp_path / "demo.1")
    assert set(lock_paths(tmp_path / "demo")) <= set(before)


def test_a_writer_whose_lock_was_taken_over_writes_no_more(tmp_path: Path) -> None:
    with run_lock(tmp_path / "demo") as lock:
        (path,) = lock_paths(tmp_path / "demo")
        path.unlink()
        other = LockFile.take(path)
        with pytest.raises(
            RunDirectoryLostError, match=r"no longer belongs to this process.*taken over by"
        ) as lost:
            lock.check()
        assert "\n" not in str(lost.value)
    other.check()
    other.release()


def test_a_directory_that_cannot_be_locked_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The permissions do not apply to root, so the refusal is given."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(lock_file, "_create", refuse)
    with (
        pytest.raises(RunInUseError, match=r"demo cannot be locked: .*lock: Permission denied"),
        run_lock(tmp_path / "demo"),
    ):
        pytest.fail("it is not locked")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_a_name_that_is_taken_by_something_else_is_refused(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(lock_paths(tmp_path / "demo")[0])
    with pytest.raises(RunInUseError, match="it is not a regular file"), run_lock(tmp_path / "demo"):
        pytest.fail("it is not locked")
