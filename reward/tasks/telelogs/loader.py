"""Makes problems of rows that the user has: validated, split, and with randomized labels where that is asked.

A row has the fields `question` and `answer` (C1 … C8); other fields are ignored. Every mistake is one line that names
the row.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from reward.tasks.telelogs.causes import LABELS
from reward.tasks.telelogs.options import PUBLISHED, Option, printed_label, randomised_options
from reward.tasks.telelogs.problem import Problem, Split, split_of
from reward.tasks.telelogs.sources import RawRows, read_source

FIELDS = ("question", "answer")
# What files and splits are called, by the split that they are for us.
_SPLIT_NAMES: Mapping[str, Split] = {"train": "train", "test": "eval"}
# The list of causes: eight lines, one right after the other.
_LIST_OF_CAUSES = re.compile("".join(rf"^ *{label} *[:.)] *(\S.*)\n" for label in LABELS), re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Row:
    """One valid row and where it stood."""

    question: str
    answer: str
    where: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The problems of both splits, which have no question in common."""

    by_split: Mapping[Split, Sequence[Problem]]
    notes: tuple[str, ...]
    """What was left out, in a line each."""


def load_problems(source: str, eval_fraction: float, randomize_seed: int | None) -> Loaded:
    """The problems of `source`: a file, a directory with a train and a test file, or a hub id.

    Where the data have a train and a test split of their own, they are ours too, and a question that is in both is left
    out of the training; else the question's hash decides. Of questions that come twice the first counts. With a seed,
    each question gets randomized labels.

    Raises:
        ValueError: there is nothing to read, or a row is not as it should be.
    """
    parts = read_source(source)
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
        notes.append(f"{source}: {both} training questions are test questions too, and are not trained on")
    chosen: dict[Split, list[Row]] = {
        "train": [row for row in once["train"].values() if row.question not in once["eval"]],
        "eval": list(once["eval"].values()),
    }
    return Loaded(
        {split: [_problem(row, randomize_seed) for row in rows] for split, rows in chosen.items()},
        tuple(notes),
    )


def _first_of_each(rows: Sequence[Row]) -> dict[str, Row]:
    """By question."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.question, row)
    return first


def _valid(rows: RawRows) -> Iterator[Row]:
    """Rows as they should be, or ValueError for the first that is not."""
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise ValueError(f"{where}: not a mapping with the fields question and answer")
        for field in FIELDS:
            value = row.get(field)
            if value is None:
                raise ValueError(f"{where}: the field {field!r} is missing")
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{where}: the field {field!r} is not a text, or empty")
        answer = row["answer"].strip().upper()
        if answer not in LABELS:
            raise ValueError(f"{where}: the answer {row['answer'][:40]!r} is none of C1 … C8")
        yield Row(row["question"], answer, where)


def _problem(row: Row, randomize_seed: int | None) -> Problem:
    labels = tuple(option.printed for option in PUBLISHED)
    if randomize_seed is None:
        return Problem(row.question, labels, row.answer, row.answer)
    # By the question and not by its place, so that the same question always gets the same labels.
    options = randomised_options(row.answer, random.Random(f"telelogs {randomize_seed} {row.question}"))
    question = _with_options(row, options)
    return Problem(
        question, tuple(o.printed for o in options), printed_label(options, row.answer), row.answer
    )


def _with_options(row: Row, options: Sequence[Option]) -> str:
    """The question with another list of causes in place of its own."""
    lists = list(_LIST_OF_CAUSES.finditer(row.question))
    if len(lists) != 1:
        raise ValueError(
            f"{row.where}: the list of causes C1 … C8 is not to be found, so that it cannot be randomized; "
            "set task.options.randomized_labels to false"
        )
    sentences = dict(zip(LABELS, lists[0].groups(), strict=True))
    written = "".join(f"{option.printed}: {sentences[option.cause].rstrip()}\n" for option in options)
    before, after = row.question[: lists[0].start()], row.question[lists[0].end() :]
    counted = re.sub(r"\b(8|eight)\b(?=[\w\s-]{0,20}causes)", str(len(options)), before, flags=re.IGNORECASE)
    return counted + written + after
