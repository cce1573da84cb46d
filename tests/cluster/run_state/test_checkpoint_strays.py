"""Other files beside the checkpoints of a run stay as they are, and a checkpoint that is read is not deleted."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.run_state import manifest
from cluster.run_state.checkpoints import CheckpointStore
from learner.state.state_files import CheckpointError
from tests.cluster.run_state.saving import newest_step, save


def a_copy(directory: Path) -> Path:
    return shutil.copytree(directory / "step-000100", directory / "step-best")


def a_copy_named_as_another_step(directory: Path) -> Path:
    return shutil.copytree(directory / "step-000100", directory / "step-000900")


def a_copy_with_more_zeros(directory: Path) -> Path:
    return shutil.copytree(directory / "step-000050", directory / "step-0000050")


def a_copy_with_other_digits(directory: Path) -> Path:
    return shutil.copytree(directory / "step-000050", directory / "step-٠٠٠٠٥٠")


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
    a_copy_with_more_zeros,
    a_copy_with_other_digits,
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
