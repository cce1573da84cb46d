"""Checkpoints: one that a crash left incomplete does not count, and the last undamaged one is never lost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.run_state import manifest
from cluster.run_state.checkpoints import Checkpoint, CheckpointStore
from cluster.run_state.progress import Progress
from learner.state.state_files import CheckpointError, CheckpointWriteError, FileRecord, seal
from tests.builders import make_progress

RANK_FILE = "learner/state/rank-0.pt"


def progress_at(step: int) -> Progress:
    return make_progress(
        step, position=10 * step, in_flight=("train/0/1", "train/0/7"), trained_prompts=9 * step
    )


def write_learner(path: Path) -> None:
    """Write several files, some in a subdirectory, as DeepSpeed does."""
    (path / "learner" / "state").mkdir(parents=True)
    (path / "learner" / "state" / "rank-0.pt").write_bytes(bytes(1000))
    (path / "learner" / "meta").write_text("meta")


def save(store: CheckpointStore, step: int) -> Path:
    path = store.begin(step)
    write_learner(path)
    store.commit(path, progress_at(step))
    return path


def newest_step(store: CheckpointStore) -> int | None:
    found = store.newest_intact(lambda _: None)
    return found.progress.step if found else None


def only_line(told: list[str]) -> str:
    (line,) = told
    assert "\n" not in line
    return line


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def test_an_empty_store_has_no_checkpoint(store: CheckpointStore) -> None:
    assert store.newest_intact(pytest.fail) is None


def test_a_saved_checkpoint_is_found(store: CheckpointStore) -> None:
    path = save(store, 50)
    assert store.newest_intact(pytest.fail) == Checkpoint(path, progress_at(50))
    assert (path / RANK_FILE).read_bytes() == bytes(1000)


def test_a_pass_at_1_that_is_not_a_number_survives(store: CheckpointStore) -> None:
    path = store.begin(1)
    store.commit(path, make_progress(1, first_pass_at_1=math.nan))
    found = store.newest_intact(pytest.fail)
    assert found is not None
    assert math.isnan(found.progress.first_pass_at_1)


def test_the_manifest_names_every_file_with_its_size_and_hash(store: CheckpointStore) -> None:
    path = save(store, 50)
    content = json.loads((path / "COMPLETE").read_text())
    assert content["format"] == 2
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {"COMPLETE"}
    assert content["files"].keys() == files == {RANK_FILE, "learner/meta", "progress.json"}
    assert content["files"][RANK_FILE] == {"size": 1000, "sha256": hashlib.sha256(bytes(1000)).hexdigest()}


def test_sealed_files_are_not_read_again(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.begin(50)
    write_learner(path)
    sealed = {path / RANK_FILE: seal(path / RANK_FILE)}
    read: list[str] = []

    def watched(file: Path) -> FileRecord:
        read.append(file.name)
        return seal(file)

    with monkeypatch.context() as patch:
        patch.setattr("cluster.run_state.checkpoints.seal", watched)
        store.commit(path, progress_at(50), sealed)
    assert sorted(read) == ["meta", "progress.json"]
    assert newest_step(store) == 50


def test_a_file_that_changed_after_it_was_sealed_is_no_checkpoint(store: CheckpointStore) -> None:
    path = store.begin(50)
    write_learner(path)
    sealed = {path / RANK_FILE: seal(path / RANK_FILE)}
    truncate(RANK_FILE)(path)
    with pytest.raises(CheckpointWriteError, match=r"rank-0\.pt has 500 bytes, expected 1000"):
        store.commit(path, progress_at(50), sealed)
    assert newest_step(store) is None


def truncate(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        file = path / name
        os.truncate(file, file.stat().st_size // 2)

    return damage


def empty(name: str) -> Callable[[Path], None]:
    return lambda path: os.truncate(path / name, 0)


def remove(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


@pytest.mark.parametrize(
    "damage",
    [
        remove("COMPLETE"),
        truncate("learner/state/rank-0.pt"),
        remove("learner/state/rank-0.pt"),
        truncate("progress.json"),
        remove("progress.json"),
        truncate("COMPLETE"),
        empty("COMPLETE"),
        lambda path: shutil.rmtree(path / "learner"),
        lambda path: (path / "learner" / "meta").write_text("meta, twice as long"),
        lambda path: (path / RANK_FILE).write_bytes(bytes(999) + b"1"),
        lambda path: (path / "progress.json").write_text("{}"),
    ],
    ids=[
        "not committed",
        "file truncated",
        "file missing",
        "progress truncated",
        "progress missing",
        "marker truncated",
        "marker empty",
        "folder missing",
        "file grown",
        "one bit flipped",
        "progress replaced",
    ],
)
def test_a_damaged_checkpoint_does_not_count(store: CheckpointStore, damage: Callable[[Path], None]) -> None:
    save(store, 50)
    damage(save(store, 100))
    assert newest_step(store) == 50


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate(RANK_FILE), r"rank-0\.pt has 500 bytes, expected 1000"),
        (remove(RANK_FILE), r"rank-0\.pt is missing"),
        (
            lambda path: (path / RANK_FILE).write_bytes(b"1" * 1000),
            r"rank-0\.pt has SHA-256 \w{64}, expected \w{64}",
        ),
        (empty("COMPLETE"), "COMPLETE cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_reported_in_one_line(
    store: CheckpointStore, damage: Callable[[Path], object], said: str
) -> None:
    save(store, 50)
    path = save(store, 100)
    damage(path)
    told: list[str] = []
    found = store.newest_intact(told.append)
    assert found is not None
    assert found.progress.step == 50
    assert str(path) in only_line(told)
    assert re.search(said, told[0])


def test_an_incomplete_checkpoint_is_skipped_silently(store: CheckpointStore) -> None:
    path = save(store, 50)
    write_learner(store.begin(100))
    assert store.newest_intact(pytest.fail) == Checkpoint(path, progress_at(50))


def test_if_all_are_damaged_the_run_does_not_start_again_by_itself(store: CheckpointStore) -> None:
    """It would repeat days of training."""
    for step in (50, 100):
        truncate(RANK_FILE)(save(store, step))
    with pytest.raises(CheckpointError, match=r"no undamaged checkpoint is left .*--fresh"):
        store.newest_intact(lambda _: None)


@pytest.mark.parametrize("content", ['{"format": 3, "files": []}', '{"learner/meta": 4}', "[1, 2]"])
def test_a_checkpoint_in_another_format_is_refused_and_kept(store: CheckpointStore, content: str) -> None:
    save(store, 50)
    path = save(store, 100)
    (path / "COMPLETE").write_text(content)
    for look in (store.complete, lambda: store.newest_intact(pytest.fail)):
        with pytest.raises(
            CheckpointError, match=r"step-000100 was written in format [13] by another version"
        ):
            look()
    assert path.exists()


def test_a_checkpoint_known_to_be_damaged_does_not_count_among_those_that_are_kept(
    store: CheckpointStore,
) -> None:
    """Its size is correct, so the damage is known only after reading it."""
    for step in (50, 100):
        path = save(store, step)
    (path / RANK_FILE).write_bytes(b"1" * 1000)
    assert newest_step(store) == 50
    save(store, 75)
    assert list(store.complete()) == [50, 75]
    save(store, 100)  # the resumed run reaches the same step
    assert list(store.complete()) == [75, 100]


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


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept_and_the_rest_deleted(tmp_path: Path, keep: int) -> None:
    store = CheckpointStore(tmp_path, keep)
    kept: list[Path] = []
    for step in (1, 7, 50, 100, 1000):
        kept = [*kept, save(store, step)][-keep:]
        assert sorted(tmp_path.iterdir()) == kept
        assert newest_step(store) == step


def test_the_newest_is_found_by_number_and_not_by_name(store: CheckpointStore) -> None:
    """`step-1000000` sorts before `step-999999` as text."""
    for step in (999_998, 999_999, 1_000_000):
        save(store, step)
        assert newest_step(store) == step


def test_complete_checkpoints_are_listed_by_step(store: CheckpointStore) -> None:
    assert store.complete() == {}
    paths = {step: save(store, step) for step in (999_999, 1_000_000)}
    write_learner(store.begin(1_000_001))
    assert list(store.complete().items()) == list(paths.items())


def test_an_incomplete_checkpoint_does_not_displace_a_complete_one(store: CheckpointStore) -> None:
    """The store keeps two, and a directory that was never committed is not one of them."""
    save(store, 50)
    save(store, 100)
    write_learner(store.begin(150))
    remove("COMPLETE")(save(store, 200))
    assert newest_step(store) == 100


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


def test_a_manifest_survives_a_round_trip(tmp_path: Path) -> None:
    written = manifest.Manifest({"learner/a b": FileRecord(3, "0" * 64), "α": FileRecord(0, "f" * 64)})
    (tmp_path / "COMPLETE").write_text(written.to_json())
    assert manifest.Manifest.read(tmp_path) == written


def test_progress_survives_a_round_trip() -> None:
    progress = progress_at(50)
    assert Progress.from_json(progress.to_json()) == progress
    assert Progress.from_json(dataclasses.replace(progress, wandb_run_id=None).to_json()).wandb_run_id is None
    for text in ("{}", "[]", '{"in_flight": 3}', json.dumps({"in_flight": [], "step": 1})):
        with pytest.raises(ValueError, match="does not describe the progress"):
            Progress.from_json(text)
