"""Problems from the user's copy of the published data: a file, a directory, or the hub.

A row has the fields `question` and `answer` (C1 … C8); other fields are ignored. Every mistake is one line that names
the row. The data are never part of this repository, because everybody has to accept their terms on the hub.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.core.types import Split
from reward.dataset.reading import read_splits
from reward.dataset.values import DataError, Located, gap, refuse
from reward.tasks.telelogs.causes import LABELS
from reward.tasks.telelogs.problem import (
    PUBLISHED,
    Option,
    Problem,
    printed_label,
    randomized_options,
    split_of,
)

FIELDS = ("question", "answer")
# The names of published splits, and the split that each belongs to here.
_SPLIT_NAMES: Mapping[str, Split] = {"train": "train", "test": "eval"}
# The list of causes: eight consecutive lines.
_LIST_OF_CAUSES = re.compile("".join(rf"^ *{label} *[:.)] *(\S.*)\n" for label in LABELS), re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Row:
    """One valid row and its location."""

    question: str
    answer: str
    where: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The problems of both splits, which share no question."""

    by_split: Mapping[Split, Sequence[Problem]]
    notes: tuple[str, ...]
    """One line for each reason to leave rows out."""


def load_problems(source: str, eval_fraction: float, randomize_seed: int | None) -> Loaded:
    """Return the problems of `source`: a file, a directory with a train and a test file, or a hub id.

    If the data have a train and a test split, these become the train and eval splits, and a question in both is left
    out of train. Otherwise the hash of the question decides. Of repeated questions the first counts.

    Args:
        source: the location of the data.
        eval_fraction: the fraction of the questions in the eval split, for data without splits.
        randomize_seed: a seed that gives each question randomized labels, or None to keep the labels.

    Raises:
        ValueError: if there is nothing to read, or a row is invalid.
    """
    parts = read_splits(source)
    if len({_SPLIT_NAMES.get(name) for name in parts} - {None}) == 2:
        found: dict[Split, list[Row]] = {"train": [], "eval": []}
        for name, rows in parts.items():
            if name in _SPLIT_NAMES:
                found[_SPLIT_NAMES[name]] += _valid(rows)
    else:
        every = [row for rows in parts.values() for row in _valid(rows)]
        found = {
            split: [row for row in every if split_of(row.question, eval_fraction) == split]
            for split in ("train", "eval")
        }
    once = {split: _first_of_each(rows) for split, rows in found.items()}
    notes = []
    if repeated := sum(len(rows) - len(once[split]) for split, rows in found.items()):
        notes.append(f"{source}: {repeated} rows repeat an earlier question and are left out")
    if both := len(once["train"].keys() & once["eval"].keys()):
        notes.append(f"{source}: {both} train questions are also test questions, and are not trained on")
    chosen: dict[Split, list[Row]] = {
        "train": [row for row in once["train"].values() if row.question not in once["eval"]],
        "eval": list(once["eval"].values()),
    }
    return Loaded(
        {split: [_problem(row, randomize_seed) for row in rows] for split, rows in chosen.items()},
        tuple(notes),
    )


def _first_of_each(rows: Sequence[Row]) -> dict[str, Row]:
    """Return the first row of each question."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.question, row)
    return first


def _valid(rows: Iterable[Located]) -> list[Row]:
    """Return the validated rows, or raise DataError for the invalid ones."""
    valid: list[Row] = []
    mistakes: list[str] = []
    for where, row in rows:
        if mistake := _mistake(row):
            mistakes.append(f"{where}: {mistake}")
        else:
            valid.append(Row(row["question"], row["answer"].strip().upper(), where))
    refuse(mistakes)
    return valid


def _mistake(row: dict[str, Any]) -> str | None:
    for field in FIELDS:
        if reason := gap(row, field):
            return reason
        if not isinstance(row[field], str):
            return f"the field {field!r} must be text, not {row[field]!r:.40}"
    if row["answer"].strip().upper() not in LABELS:
        return f"the answer {row['answer'][:40]!r} is not one of C1 … C8"
    return None


def _problem(row: Row, randomize_seed: int | None) -> Problem:
    labels = tuple(option.printed for option in PUBLISHED)
    if randomize_seed is None:
        return Problem(row.question, labels, row.answer, row.answer)
    # Seeded by the question, not by its index, so that the same question always gets the same labels.
    options = randomized_options(row.answer, random.Random(f"telelogs {randomize_seed} {row.question}"))
    question = _with_options(row, options)
    return Problem(
        question, tuple(o.printed for o in options), printed_label(options, row.answer), row.answer
    )


def _with_options(row: Row, options: Sequence[Option]) -> str:
    """Return the question with its list of causes replaced."""
    lists = list(_LIST_OF_CAUSES.finditer(row.question))
    if len(lists) != 1:
        raise DataError(
            f"{row.where}: the list of causes C1 … C8 was not found, so its labels cannot be randomized; "
            "set task.options.randomized_labels to false"
        )
    sentences = dict(zip(LABELS, lists[0].groups(), strict=True))
    written = "".join(f"{option.printed}: {sentences[option.cause].rstrip()}\n" for option in options)
    before, after = row.question[: lists[0].start()], row.question[lists[0].end() :]
    counted = re.sub(r"\b(8|eight)\b(?=[\w\s-]{0,20}causes)", str(len(options)), before, flags=re.IGNORECASE)
    return counted + written + after
