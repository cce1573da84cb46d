"""The state of the informative selection in a checkpoint: what is known of each training prompt, and how often it was
drawn, trained on and dropped. Torch-free.

The file `selection.npz` exists only in checkpoints of runs with `task.selection: informative`.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from cluster.core.reading import RECORD_MIB, read_bytes
from cluster.core.types import row_of
from cluster.run_state.progress import Progress

FILE_NAME = "selection.npz"
_DTYPES = {
    "correct": np.float64,
    "incorrect": np.float64,
    "drawn": np.int64,
    "trained": np.int64,
    "dropped": np.int64,
}


@dataclass(frozen=True, slots=True, eq=False)
class SelectionState:
    """One entry per training row in each array."""

    correct: np.ndarray  # float64 [rows]
    """The decayed number of correct responses to the row's prompt."""
    incorrect: np.ndarray  # float64 [rows]
    """The decayed number of incorrect responses."""
    drawn: np.ndarray  # int64 [rows]
    """The number of times that the row was drawn: `trained` + `dropped`, and one more while it is in flight."""
    trained: np.ndarray  # int64 [rows]
    """The number of batches that were trained on its prompt."""
    dropped: np.ndarray  # int64 [rows]
    """The number of times that dynamic sampling dropped it."""

    @staticmethod
    def initial(rows: int) -> SelectionState:
        """Return the state before the first draw."""
        return SelectionState(**{name: np.zeros(rows, dtype) for name, dtype in _DTYPES.items()})

    @property
    def rows(self) -> int:
        return len(self.drawn)

    @property
    def in_flight(self) -> np.ndarray:
        """The number of prompts in flight of each row, 0 or 1: int64 [rows]."""
        in_flight: np.ndarray = self.drawn - self.trained - self.dropped
        return in_flight

    def copy(self) -> SelectionState:
        return SelectionState(**{name: array.copy() for name, array in self._arrays().items()})

    def write(self, checkpoint: Path) -> None:
        """Write the state to its file in the directory `checkpoint`.

        Raises:
            OSError: if it cannot be written.
        """
        np.savez(checkpoint / FILE_NAME, allow_pickle=False, **self._arrays())

    @staticmethod
    def read(checkpoint: Path, progress: Progress) -> SelectionState | None:
        """Read what `write` wrote; None if the checkpoint has no such file.

        Raises:
            ValueError: if the file is not a state of the selection, or not the one of `progress`.
        """
        try:
            content = read_bytes(checkpoint / FILE_NAME, RECORD_MIB)
        except FileNotFoundError:
            return None
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as saved:
                arrays = {name: saved[name] for name in _DTYPES}
        except Exception as error:  # zipfile, zlib, struct and NumPy each have errors of their own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{FILE_NAME} cannot be read ({reason})") from error
        if fault := _fault(arrays):
            raise ValueError(f"{FILE_NAME} is not a state of the selection: {fault}")
        state = SelectionState(**arrays)
        if not state._fits(progress):
            raise ValueError(f"{FILE_NAME} is of another run or step: its counts do not fit progress.json")
        return state

    def _arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _fits(self, progress: Progress) -> bool:
        """Return whether the counts of draws and of prompts in flight are those of `progress`."""
        counted = Counter(np.flatnonzero(self.in_flight).tolist())
        return int(self.drawn.sum()) == progress.position and counted == rows_of(progress.in_flight)


def rows_of(prompt_ids: Iterable[str]) -> Counter[int]:
    """Return the rows of the prompts, with the number of times that each occurs."""
    return Counter(map(row_of, prompt_ids))


def _fault(arrays: dict[str, np.ndarray]) -> str | None:
    rows = arrays["drawn"].size
    for name, array in arrays.items():
        if array.dtype != _DTYPES[name] or array.shape != (rows,) or not rows:
            return f"{name} is {array.dtype} {list(array.shape)}"
        if not (np.isfinite(array).all() and (array >= 0).all()):
            return f"{name} has an entry that is negative or not finite"
    in_flight = arrays["drawn"] - arrays["trained"] - arrays["dropped"]
    if not np.isin(in_flight, (0, 1)).all():
        return "a row was not drawn as often as it was trained on, dropped and in flight"
    return None
