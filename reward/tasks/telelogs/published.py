"""Problems from the user's copy of the published data: a file, a directory, or the hub.

A row has the fields `question` and `answer` (C1 … C8); other fields are ignored. Every mistake is one line that names
the row. The data are never part of this repository, because everybody has to accept their terms on the hub.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.core.types import Split
from reward.dataset.reading import read_jsonl, read_parquet
from reward.tasks.telelogs.causes import LABELS
from reward.tasks.telelogs.problem import (
    PUBLISHED,
    Option,
    Problem,
    printed_label,
    randomized_options,
    split_of,
)

RawRows = Iterable[tuple[str, Mapping[str, Any]]]
"""Pairs of a row's location and the row, which has not been validated."""

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

FIELDS = ("question", "answer")
# The names of files and published splits, and the split that each belongs to here.
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


def _valid(rows: RawRows) -> Iterator[Row]:
    """Yield the validated rows, or raise ValueError for the first invalid one."""
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise ValueError(f"{where}: not a mapping with the fields question and answer")
        for field in FIELDS:
            value = row.get(field)
            if value is None:
                raise ValueError(f"{where}: the field {field!r} is missing")
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{where}: the field {field!r} must be a non-empty text")
        answer = row["answer"].strip().upper()
        if answer not in LABELS:
            raise ValueError(f"{where}: the answer {row['answer'][:40]!r} is not one of C1 … C8")
        yield Row(row["question"], answer, where)


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
        raise ValueError(
            f"{row.where}: the list of causes C1 … C8 was not found, so its labels cannot be randomized; "
            "set task.options.randomized_labels to false"
        )
    sentences = dict(zip(LABELS, lists[0].groups(), strict=True))
    written = "".join(f"{option.printed}: {sentences[option.cause].rstrip()}\n" for option in options)
    before, after = row.question[: lists[0].start()], row.question[lists[0].end() :]
    counted = re.sub(r"\b(8|eight)\b(?=[\w\s-]{0,20}causes)", str(len(options)), before, flags=re.IGNORECASE)
    return counted + written + after


# --- reading the rows


def read_source(source: str) -> dict[str, RawRows]:
    """Return the parts of a file, a directory or a hub data set, by name.

    Files whose names contain `train` or `test` form the part of that name.

    Raises:
        ValueError: if there is nothing to read; for some mistakes only when the rows are read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return {path.stem: _read_file(path)}
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not files:
            raise ValueError(f"{source}: no {', '.join(SUFFIXES)} file in this directory")
        parts: dict[str, RawRows] = {}
        for file in files:
            name = _part_name(file)
            parts[name] = itertools.chain(parts.get(name, ()), _read_file(file))
        return parts
    if _HUB_ID.fullmatch(source):
        return _read_hub(source)
    raise ValueError(f"{source}: there is no such file, and it is not a hub id such as netop/TeleLogs")


def _part_name(file: Path) -> str:
    """Return `train` for `train-00000-of-00001.parquet` or `telelogs_train.jsonl`, otherwise the whole name."""
    words = re.split(r"[-_.\s]", file.stem.lower())
    return next((name for name in ("train", "test") if name in words), file.stem)


def _read_file(file: Path) -> RawRows:
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{file}: the file name must end in {', '.join(SUFFIXES)}")
    if file.suffix == ".jsonl":
        return read_jsonl(file)
    if file.suffix == ".parquet":
        return read_parquet(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error.reason} at byte {error.start})") from None
    if file.suffix == ".csv":
        reader = csv.DictReader(text.splitlines(keepends=True))
        return ((f"{file}, row {n}", row) for n, row in enumerate(reader, start=1))
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    if not isinstance(rows, list):
        raise ValueError(f"{file}: not a list of rows")
    return ((f"{file}, row {n}", row) for n, row in enumerate(rows, start=1))


def _read_hub(source: str) -> dict[str, RawRows]:
    from datasets import load_dataset  # slow to import

    try:
        parts = load_dataset(source)
    except Exception as error:  # many types: no network, no access, no such data set
        raise ValueError(
            f"{source}: could not be loaded from the hub ({_one_line(error)}); accept its terms there and log in with "
            "`hf auth login`, or name a local file"
        ) from error
    return {name: _numbered(f"{source}, {name}", rows) for name, rows in parts.items()}


def _numbered(name: str, rows: Iterable[Mapping[str, Any]]) -> RawRows:
    return ((f"{name} row {n}", row) for n, row in enumerate(rows, start=1))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
