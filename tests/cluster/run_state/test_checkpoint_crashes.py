"""Crashes, failed saves and full disks: the previous checkpoint is never lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.run_state.checkpoints import Checkpoint, CheckpointStore
from learner.state.state_files import CheckpointError, CheckpointWriteError
from tests.cluster.run_state.saving import newest_step, progress_at, save, write_learner


def test_leftovers_of_crashes_are_removed_at_the_next_commit(store: CheckpointStore) -> None:
    write_learner(store.begin(30))
    store.scratch.mkdir()
    path = save(store, 50)
    assert list(path.parent.iterdir()) == [path]


def test_a_crash_between_begin_and_commit_is_harmless(store: CheckpointStore) -> None:
    save(store, 50)
    write_learner(store.begin(100))
    assert newest_step(store) == 50
    path = save(store, 100)  # the resumed run reaches the same step
    assert store.newest_intact(pytest.fail) == Checkpoint(path, progress_at(100))


def test_beginning_a_step_again_removes_its_first_attempt(store: CheckpointStore) -> None:
    (store.begin(50) / "leftover").touch()
    assert list(store.begin(50).iterdir()) == []


def test_files_are_on_the_disk_before_the_manifest_is_and_the_manifest_before_deletions(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds for every file and every directory. Only then are older checkpoints deleted."""
    for step in (1, 2):
        save(store, step)
    path = store.begin(3)
    write_learner(path)
    synced: set[Path] = set()
    real_fsync, real_replace, real_rmtree = os.fsync, os.replace, shutil.rmtree

    def fsync(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        if target.name == "COMPLETE":
            assert source in synced
            assert {path.parent, path, *path.rglob("*")} - {source} <= synced
            synced.clear()
        real_replace(source, target)

    def rmtree(old: Path) -> None:
        assert path in synced
        real_rmtree(old)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    store.commit(path, progress_at(3))
    assert synced == {path}, "the marker was written, and then its directory was synced"
    assert sorted(path.parent.iterdir()) == [path.with_name("step-000002"), path]


@pytest.mark.parametrize(("failing", "calls_made"), [("fsync", 13), ("replace", 2)])
def test_a_crash_while_committing_is_harmless(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, failing: str, calls_made: int
) -> None:
    """The crash comes at each of the calls that make it durable. It counts as soon as it has a manifest."""
    save(store, 50)
    real = getattr(os, failing)
    for survived in range(calls_made):
        calls = iter([real] * survived)

        def crash(*arguments: object, calls: object = calls) -> None:
            call = next(calls, None)  # type: ignore[call-overload]
            if call is None:
                raise OSError("crash")
            call(*arguments)

        path = store.begin(100)
        write_learner(path)
        with monkeypatch.context() as patch, pytest.raises(OSError, match="crash"):
            patch.setattr(os, failing, crash)
            store.commit(path, progress_at(100))
        assert newest_step(store) == (100 if (path / "COMPLETE").exists() else 50)
    save(store, 100)
    assert newest_step(store) == 100


def test_a_crash_while_deleting_the_old_is_harmless(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 50)
    save(store, 100)

    def half(path: Path) -> None:
        (path / "learner" / "meta").unlink()
        raise OSError("crash")

    path = store.begin(150)
    write_learner(path)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="crash"):
        patch.setattr(shutil, "rmtree", half)
        store.commit(path, progress_at(150))
    assert newest_step(store) == 150
    save(store, 200)
    assert newest_step(store) == 200


def test_a_failed_save_is_explained_and_removed(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = save(store, 50)
    with (
        pytest.raises(
            CheckpointError, match=r"checkpoint of step 100 .*\(disk on fire\): in .*from step 50"
        ) as caught,
        store.attempt(100) as path,
    ):
        write_learner(path)
        raise CheckpointWriteError("disk on fire")
    assert "\n" not in str(caught.value)
    assert list(kept.parent.iterdir()) == [kept]


def test_a_timeout_of_a_rank_is_not_reported_as_a_full_disk(store: CheckpointStore) -> None:
    with pytest.raises(TimeoutError, match="rank 1"), store.attempt(100):
        raise TimeoutError("rank 1 did not finish")


def test_a_complete_checkpoint_stays_if_an_older_one_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 50)

    def busy(path: Path) -> None:
        raise OSError("busy")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="busy"), store.attempt(100) as path:
        write_learner(path)
        patch.setattr(shutil, "rmtree", busy)
        store.commit(path, progress_at(100))
    assert newest_step(store) == 100


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs permission to mount a file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("bytes_left", [0, 200, 5000])
def test_a_full_disk_leaves_the_previous_checkpoint_intact(small_disk: Path, bytes_left: int) -> None:
    """The disk fills up with the learner's files, with the controller's, or with the manifest."""
    store = CheckpointStore(small_disk, keep=1)
    save(store, 50)
    with (
        pytest.raises(
            CheckpointError, match=r"No space left on device.* MiB of 1 MiB are free.*took 0 MiB"
        ) as caught,
        store.attempt(100) as path,
    ):
        write_learner(path)
        fill(path / "learner" / "large", bytes_left)
        store.commit(path, progress_at(100))
    assert str(small_disk) in str(caught.value)
    assert newest_step(store) == 50
    assert [entry.name for entry in small_disk.iterdir()] == ["step-000050"]
    save(store, 100)  # there is free space again
    assert newest_step(store) == 100


def fill(file: Path, bytes_left: int) -> None:
    """Write until the disk is full, then free a little space: less than one page, or two."""
    with open(file, "wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            if bytes_left == 0:
                raise
            stream.truncate(stream.tell() - bytes_left)
