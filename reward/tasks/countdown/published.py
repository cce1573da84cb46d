"""Puzzles from the user's copy of a data set, such as the published `Jiayi-Pan/Countdown-Tasks-3to4`.

A row has a `target` and its `nums`; other fields are ignored. The published rows come in one split, and a twelfth of
them repeat another row with its numbers in another order. The key of a puzzle, which ignores the order, therefore
decides its split, and no puzzle is in both splits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reward.dataset.reading import read_rows
from reward.dataset.values import gap, refuse
from reward.tasks.countdown.puzzles import Puzzle


@dataclass(frozen=True, slots=True)
class Published:
    """The different puzzles of a source, in the order of the rows. Of equal puzzles the first is kept."""

    puzzles: tuple[Puzzle, ...]
    notes: tuple[str, ...]
    """One line for each reason to leave rows out."""


def read_puzzles(source: str, split: str) -> Published:
    """Return all puzzles of `source`: a `.jsonl`, `.json` or `.parquet` file, a directory with such files, or a hub id.

    Raises:
        ValueError: if the data do not exist, or a row is not a puzzle. The message says where.
    """
    rows = read_rows(source, None, split)
    puzzles: dict[str, Puzzle] = {}
    repeated: list[str] = []
    mistakes: list[str] = []
    for where, row in rows:
        try:
            puzzle = _puzzle(row)
        except ValueError as error:
            mistakes.append(f"{where}: {error}")
            continue
        if puzzle.key in puzzles:
            repeated.append(where)
        else:
            puzzles[puzzle.key] = puzzle
    refuse(mistakes)
    notes = (
        (
            f"{source}: {len(repeated)} of {len(rows)} rows repeat an earlier puzzle (in any order) and are left "
            f"out, the first is {repeated[0]}",
        )
        if repeated
        else ()
    )
    return Published(tuple(puzzles.values()), notes)


def _puzzle(row: dict[str, Any]) -> Puzzle:
    """Return the puzzle of a row, or raise ValueError with the reason."""
    for field in ("target", "nums"):
        if reason := gap(row, field):
            raise ValueError(reason)
    target, numbers = row["target"], row["nums"]
    if not _is_whole(target):
        raise ValueError(f"'target' must be a whole number, not {target!r:.60}")
    if not isinstance(numbers, list) or not numbers or not all(_is_whole(n) and n >= 0 for n in numbers):
        raise ValueError(
            f"'nums' must be a list of whole numbers, none of them negative, not {numbers!r:.60}"
        )
    return Puzzle(tuple(numbers), target)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
