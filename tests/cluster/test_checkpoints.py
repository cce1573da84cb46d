"""Checkpoints: what a crash leaves half done does not count, and the last good one is never lost."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.checkpoints import CheckpointStore, Progress


def progress_at(step: int) -> Progress:
    return Progress(step, position=10 * step, in_flight=("train/0/1", "train/0/7"), trained_prompts=9 * step,
                    first_pass_at_1=0.1, elapsed_s=1.5 * step)  # fmt: skip


def write_learner(path: Path) -> None:
    """As DeepSpeed does: several files, some of them deeper."""
    (path / "learner" / "state").mkdir(parents=True)
    (path / "learner" / "state" / "rank-0.pt").write_bytes(bytes(1000))
    (path / "learner" / "meta").write_text("meta")


def save(store: CheckpointStore, step: int) -> Path:
    path = store.begin(step)
    write_learner(path)
    store.commit(path, progress_at(step))
    return path


def newest_step(store: CheckpointStore) -> int | None:
    found = store.newest()
    return found[1].step if found else None


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def test_there_is_none_before_the_first(store: CheckpointStore) -> None:
    assert store.newest() is None


def test_what_was_saved_is_restored(store: CheckpointStore) -> None:
    path = save(store, 50)
    assert store.newest() == (path, progress_at(50))
    assert (path / "learner" / "state" / "rank-0.pt").read_bytes() == bytes(1000)


def test_a_pass_at_1_that_is_not_a_number_survives(store: CheckpointStore) -> None:
    path = store.begin(1)
    store.commit(path, Progress(1, 0, (), 0, math.nan, 0.0))
    found = store.newest()
    assert found is not None
    assert math.isnan(found[1].first_pass_at_1)


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
    ],
)
def test_a_damaged_checkpoint_does_not_count(store: CheckpointStore, damage: Callable[[Path], None]) -> None:
    save(store, 50)
    damage(save(store, 100))
    assert newest_step(store) == 50


def test_a_crash_between_begin_and_commit_is_harmless(store: CheckpointStore) -> None:
    save(store, 50)
    write_learner(store.begin(100))
    assert newest_step(store) == 50
    path = save(store, 100)  # the resumed run comes to the same step
    assert store.newest() == (path, progress_at(100))


def test_beginning_a_step_again_forgets_its_first_attempt(store: CheckpointStore) -> None:
    (store.begin(50) / "leftover").touch()
    assert list(store.begin(50).iterdir()) == []


def test_all_is_on_the_disk_before_the_checkpoint_counts_and_then_the_marker_too(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file and every directory. Only then may an older checkpoint go."""
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


@pytest.mark.parametrize(("failing", "calls_made"), [("fsync", 10), ("replace", 2)])
def test_a_crash_while_committing_is_harmless(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, failing: str, calls_made: int
) -> None:
    """At each of the calls that make it durable. It counts from the moment on at which its marker is there."""
    save(store, 50)
    real = getattr(os, failing)
    for survived in range(calls_made):
        calls = iter([real] * survived)

        def crash(*arguments: object, calls: object = calls) -> None:
            call = next(calls, None)  # type: ignore[call-overload]
            if call is None:
                raise OSError("cut off")
            call(*arguments)

        path = store.begin(100)
        write_learner(path)
        with monkeypatch.context() as patch, pytest.raises(OSError, match="cut off"):
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
        raise OSError("cut off")

    path = store.begin(150)
    write_learner(path)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="cut off"):
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


def test_newest_is_by_number_not_by_name(store: CheckpointStore) -> None:
    """`step-1000000` sorts before `step-999999` as text."""
    for step in (999_998, 999_999, 1_000_000):
        save(store, step)
        assert newest_step(store) == step


def test_the_complete_ones_are_listed_by_step(store: CheckpointStore) -> None:
    assert store.complete() == {}
    paths = {step: save(store, step) for step in (999_999, 1_000_000)}
    write_learner(store.begin(1_000_001))
    assert list(store.complete().items()) == list(paths.items())


def test_an_incomplete_checkpoint_does_not_push_out_a_good_one(store: CheckpointStore) -> None:
    """Two are kept, and what was never committed is not one of them."""
    save(store, 50)
    save(store, 100)
    write_learner(store.begin(150))
    remove("COMPLETE")(save(store, 200))
    assert newest_step(store) == 100
