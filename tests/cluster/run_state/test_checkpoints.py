"""Checkpoints: one that a crash left incomplete does not count, and the last undamaged one is never lost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

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
