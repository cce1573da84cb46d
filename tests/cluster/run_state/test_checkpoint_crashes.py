"""Crashes, failed saves and full disks: the previous checkpoint is never lost."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
    assert [entry.name for entry in store.begin(50).iterdir()] == ["INCOMPLETE"]


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


@pytest.mark.parametrize(("failing", "calls_made"), [("fsync", 14), ("replace", 2)])
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


CHANGES = ("mkdir", "fsync", "replace", "rename", "unlink", "rmdir")
"""All calls by which the store changes the disk, besides writing to a file."""


def test_a_crash_at_any_call_of_a_save_is_harmless(tmp_path: Path) -> None:
    """At each of them, the newest complete checkpoint is found, and the next save removes what the crash has left."""
    calls = 0
    for survived in itertools.count():
        store = CheckpointStore(tmp_path / str(survived) / "checkpoints", keep=2)
        store._directory.mkdir(parents=True)
        for step in (50, 100):
            save(store, step)
        with pytest.MonkeyPatch.context() as patch:
            crash_after(patch, survived)
            try:
                save(store, 150)
            except OSError:
                calls += 1
            else:
                break
        found = newest_step(CheckpointStore(store._directory, keep=2))
        assert found in (100, 150), f"after {survived} calls"
        kept = [save(store, 200).with_name(f"step-{found:06d}"), store._path(200)]
        assert sorted(store._directory.iterdir()) == kept, f"after {survived} calls"
    assert calls > 25


def crash_after(patch: pytest.MonkeyPatch, survived: int) -> None:
    """Let the disk fail after this many changes."""
    fuse = iter(range(survived, 0, -1))

    def fused(real: Callable[..., None]) -> Callable[..., None]:
        def changed(*arguments: Any, **options: Any) -> None:
            if next(fuse, None) is None:
                raise OSError("crash")
            real(*arguments, **options)

        return changed

    for name in CHANGES:
        patch.setattr(os, name, fused(getattr(os, name)))


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

    real = os.unlink

    def busy(path: Path) -> None:
        if "step-000050" in str(path):
            raise OSError("busy")
        real(path)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="busy"), store.attempt(100) as path:
        write_learner(path)
        patch.setattr(os, "unlink", busy)
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
