"""The state of the selection in a checkpoint is read back as it was, and nothing else is taken for it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.run_state.checkpoints import CheckpointStore
from cluster.run_state.progress import Progress
from cluster.run_state.selection_state import FILE_NAME, SelectionState
from learner.state.state_files import CheckpointError
from tests.builders import make_progress
from tests.cluster.run_state.saving import only_line, write_learner

NAMES = [field.name for field in fields(SelectionState)]


def arrays() -> dict[str, Any]:
    """A state of three rows, of which row 2 is in flight."""
    return {
        "correct": np.array([0.0, 1.5, 3.0]),
        "incorrect": np.array([16.0, 0.1, 13.0]),
        "drawn": np.array([1, 3, 2]),
        "trained": np.array([0, 3, 1]),
        "dropped": np.array([1, 0, 0]),
    }


def progress(step: int = 50, **changes: Any) -> Progress:
    return make_progress(step, **{"position": 6, "in_flight": ("train/1/2",)} | changes)


def save(store: CheckpointStore, step: int, change: Callable[[Path], None] = lambda _: None) -> Path:
    """Save a checkpoint whose files are changed before they are sealed."""
    path = store.begin(step)
    write_learner(path)
    SelectionState(**arrays()).write(path)
    change(path / FILE_NAME)
    store.commit(path, progress(step))
    return path


def test_a_checkpoint_has_the_state_that_was_saved(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    path = store.begin(50)
    store.commit(path, progress(), selection=SelectionState(**arrays()))
    found = store.newest_intact(pytest.fail)
    assert found is not None
    assert found.selection is not None
    for name, array in arrays().items():
        saved = getattr(found.selection, name)
        np.testing.assert_array_equal(saved, array)
        assert saved.dtype == array.dtype
    assert found.selection.in_flight.tolist() == [0, 0, 1]


def test_a_checkpoint_of_a_uniform_run_has_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    path = store.begin(50)
    store.commit(path, progress())
    assert not (path / FILE_NAME).exists()
    found = store.newest_intact(pytest.fail)
    assert found is not None
    assert found.selection is None


def replaced(**changed: Any) -> Callable[[Path], None]:
    return lambda file: np.savez(file, **arrays() | changed)


def without(name: str) -> Callable[[Path], None]:
    return lambda file: np.savez(file, **{other: array for other, array in arrays().items() if other != name})


FAULTS = {
    "not npz": lambda file: file.write_bytes(b"selection"),
    "nothing": lambda file: file.write_bytes(b""),
    "npy": lambda file: file.write_bytes(_npy(np.zeros(3))),
    "pickle": replaced(drawn=np.array([1, {}, 2], dtype=object)),
    "short": lambda file: file.write_bytes(file.read_bytes()[:-40]),
    "no rows": lambda file: np.savez(file, **{name: array[:0] for name, array in arrays().items()}),
    "scalar": lambda file: np.savez(file, **{name: array[0] for name, array in arrays().items()}),
    "float counts": replaced(drawn=np.array([1.0, 3.0, 2.0])),
    "integer evidence": replaced(correct=np.array([0, 1, 3])),
    "other length": replaced(correct=np.zeros(4)),
    "matrix": replaced(correct=np.zeros((3, 1))),
    "nan": replaced(incorrect=np.array([0.0, np.nan, 1.0])),
    "infinite": replaced(correct=np.array([0.0, np.inf, 1.0])),
    "negative": replaced(correct=np.array([0.0, -0.5, 1.0])),
    "twice in flight": replaced(trained=np.array([0, 3, 0])),
    "settled undrawn": replaced(trained=np.array([0, 3, 3])),
    **{f"without {name}": without(name) for name in NAMES},
    "another row in flight": replaced(trained=np.array([0, 2, 2])),
    "another step": replaced(drawn=np.array([2, 3, 2]), trained=np.array([1, 3, 1])),
}


def _npy(array: np.ndarray) -> bytes:
    np.save(content := io.BytesIO(), array)
    return content.getvalue()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_foreign_file_is_reported_in_one_line_and_the_previous_checkpoint_is_used(
    tmp_path: Path, fault: str
) -> None:
    """Its hash is right, as in a checkpoint that was put together from others."""
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 50)
    path = save(store, 100, FAULTS[fault])
    told: list[str] = []
    found = store.newest_intact(told.append)
    assert found is not None
    assert found.progress.step == 50
    assert only_line(told).startswith(f"{path} is damaged: {FILE_NAME} ")


def test_a_file_that_changed_on_the_disk_is_damaged(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    path = save(store, 50)
    content = bytearray((path / FILE_NAME).read_bytes())
    content[len(content) // 2] ^= 1
    (path / FILE_NAME).write_bytes(content)
    with pytest.raises(
        CheckpointError, match=rf"is damaged: {FILE_NAME} has SHA-256 .* start again with --fresh"
    ):
        store.newest_intact(lambda _: None)


class Touching:
    """A pickle of it, when it is read, makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.file,)


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    np.savez(tmp_path / FILE_NAME, **arrays() | {"drawn": np.array([Touching(tmp_path / "touched")])})
    with pytest.raises(ValueError, match="cannot be read"):
        SelectionState.read(tmp_path, progress())
    assert not (tmp_path / "touched").exists()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound")
    SelectionState(**arrays()).write(path)
    return path


@settings(max_examples=200)
@given(position=st.integers(0), value=st.integers(0, 255))
def test_any_changed_byte_is_either_refused_or_without_effect(sound: Path, position: int, value: int) -> None:
    """Even without the hashes of a checkpoint, no file ends the run with another error."""
    content = bytearray((sound / FILE_NAME).read_bytes())
    content[position % len(content)] = value
    changed = sound / "changed"
    changed.mkdir(exist_ok=True)
    (changed / FILE_NAME).write_bytes(content)
    state, told = None, ""
    try:
        state = SelectionState.read(changed, progress())
    except ValueError as error:
        told = str(error)
    if state is None:
        assert told.startswith(FILE_NAME)
        assert "\n" not in told
    else:
        assert state.in_flight.tolist() == [0, 0, 1]
