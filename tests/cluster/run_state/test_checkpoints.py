"""Checkpoints: one that a crash left incomplete does not count, and the last undamaged one is never lost."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.run_state import manifest
from cluster.run_state.checkpoints import Checkpoint, CheckpointStore
from cluster.run_state.progress import Progress
from learner.state.state_files import CheckpointError, CheckpointWriteError, FileRecord, seal
from tests.builders import make_progress
from tests.cluster.run_state.saving import RANK_FILE, newest_step, only_line, progress_at, save, write_learner


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


# --- what the store has not made


def a_copy(directory: Path) -> Path:
    return shutil.copytree(directory / "step-000100", directory / "step-best")


def a_copy_named_as_another_step(directory: Path) -> Path:
    return shutil.copytree(directory / "step-000100", directory / "step-000900")


def a_backup(directory: Path) -> Path:
    return shutil.copytree(directory / "step-000050", directory / "step-000050.backup")


def a_link(directory: Path) -> Path:
    (link := directory / "step-best").symlink_to("step-000100")
    return link


def a_link_with_the_name_of_a_step(directory: Path) -> Path:
    moved = directory.parent / "elsewhere"
    shutil.copytree(directory / "step-000050", moved)
    (link := directory / "step-000049").symlink_to(moved)
    return link


def a_link_named_as_scratch(directory: Path) -> Path:
    (directory.parent / "kept").mkdir()
    (directory.parent / "kept" / "file").touch()
    (link := directory / ".resizing-01234567").symlink_to(directory.parent / "kept")
    return link


def a_directory(name: str) -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        (directory / name / "below").mkdir(parents=True)
        (directory / name / "below" / "note").touch()
        return directory / name

    return make


def a_note(name: str) -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        (directory / name).write_text("keep me")
        return directory / name

    return make


STRAYS: list[Callable[[Path], Path]] = [
    a_copy,
    a_copy_named_as_another_step,
    a_backup,
    a_link,
    a_link_with_the_name_of_a_step,
    a_link_named_as_scratch,
    *(a_directory(name) for name in ("resized", "step-7", "step-000007", "step-000007.discarded", "step-٣")),
    *(a_note(name) for name in ("step-notes.txt", "step-000003", "resized", ".resizing-01234567", "step-")),
]


def content(path: Path) -> dict[str, str]:
    """Return what a user sees at `path`: all names below it, with their sizes, or the target of a link."""
    entries = [path] if path.is_symlink() else [path, *path.rglob("*")]
    return {
        str(entry): str(entry.readlink())
        if entry.is_symlink()
        else f"{entry.is_dir()} {entry.stat().st_size}"
        for entry in entries
    }


@pytest.mark.parametrize("make", STRAYS, ids=lambda make: make.__qualname__)
def test_what_lies_beside_checkpoints_is_not_touched_and_costs_none(
    store: CheckpointStore, make: Callable[[Path], Path]
) -> None:
    for step in (50, 100):
        save(store, step)
    stray = make(store._directory)
    elsewhere = [path for path in store._directory.parent.iterdir() if path != store._directory]
    before = [content(path) for path in (stray, *elsewhere)]
    for step in (150, 200):
        save(store, step)
        found = store.newest_intact(lambda _: None)
        assert found is not None
        assert found.progress.step == step
        assert [step - 50, step] == [s for s in store.complete() if s not in (49, 900)]
        store = CheckpointStore(store._directory, keep=2)
    assert [content(path) for path in (stray, *elsewhere)] == before
    for kept in (150, 200):
        assert (store._path(kept) / "COMPLETE").exists()


@pytest.mark.parametrize("make", [a_directory("step-000300"), a_note("step-000300")])
def test_what_has_the_name_of_the_next_checkpoint_is_moved_aside(
    store: CheckpointStore, make: Callable[[Path], Path]
) -> None:
    """The run continues, and nothing is lost."""
    save(store, 50)
    before = [text for name, text in content(make(store._directory)).items()]
    save(store, 300)
    assert newest_step(store) == 300
    (moved,) = store._directory.glob("step-000300.moved-*")
    assert list(content(moved).values()) == before


def test_a_file_that_was_added_to_a_checkpoint_stays(store: CheckpointStore) -> None:
    note = save(store, 50) / "learner" / "notes.txt"
    note.write_text("the best one")
    for step in (100, 150, 200):
        save(store, step)
    assert note.read_text() == "the best one"
    assert [entry.name for entry in note.parent.iterdir()] == ["notes.txt"]
    assert list(store.complete()) == [150, 200]


def test_checkpoints_on_another_disk_are_rotated_as_usual(tmp_path: Path) -> None:
    """The directory of all checkpoints may be a link."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "disk")
    store = CheckpointStore(tmp_path / "checkpoints", keep=1)
    for step in (50, 100):
        save(store, step)
    assert [entry.name for entry in (tmp_path / "disk").iterdir()] == ["step-000100"]


# --- readers


def test_a_checkpoint_that_is_read_is_not_deleted(store: CheckpointStore) -> None:
    path = save(store, 50)
    with store.held(path):
        for step in (100, 150, 200):
            save(store, step)
        assert list(store.complete()) == [50, 150, 200]
        assert manifest.Manifest.read(path).content_fault(path) is None
    save(store, 250)
    assert list(store.complete()) == [200, 250]
    assert len(list(store._directory.iterdir())) == 2


def test_a_reader_comes_too_late_or_the_deletion_does(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader begins at any moment of the deletion: at a call that looks for readers, or at any change."""
    outcomes = set()
    for moment in range(20):
        step = 1000 + 10 * moment
        path = save(store, step)
        save(store, step + 1)
        holds = contextlib.ExitStack()
        calls = iter(range(moment, -1, -1))

        def watched(real: Callable[..., Any], path: Path = path, calls: Any = calls) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if next(calls, None) == 0:
                    try:
                        holds.enter_context(CheckpointStore(path.parent, keep=2).held(path))  # noqa: B023
                        outcomes.add("read")
                    except CheckpointError:
                        outcomes.add("refused")
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(CheckpointStore, "readers", watched(CheckpointStore.readers))
            for name in ("rename", "unlink", "rmdir"):
                patch.setattr(os, name, watched(getattr(os, name)))
            with holds:
                save(store, step + 2)
                readers = store.readers(path)
                assert bool(readers) == (path / "COMPLETE").exists()
                if readers:
                    assert manifest.Manifest.read(path).content_fault(path) is None
    assert outcomes == {"read", "refused"}


def test_a_deleted_run_directory_ends_the_run_with_one_line(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run" / "checkpoints", keep=2)
    with (
        pytest.raises(
            CheckpointError, match="checkpoints no longer exists: the run directory was deleted"
        ) as caught,
        store.attempt(50),
    ):
        pytest.fail("it has no directory")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [], "it is not made again"


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
