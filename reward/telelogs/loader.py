"""Reads the published problems, or others of the same form, from where the user has them. They are never part of this
repository: the hub asks everybody to accept the data set's terms.

A row has the fields `question` and `answer` (C1 … C8); other fields are ignored. Every mistake is one line that names
the row.
"""

from __future__ import annotations

import csv
import json
import logging
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward.telelogs.causes import LABELS
from reward.telelogs.options import PUBLISHED, Option, printed_label, randomised_options
from reward.telelogs.problem import Problem, Split, split_of

FIELDS = ("question", "answer")
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
# What files and splits are called, by the split that they are for us.
_SPLIT_NAMES: Mapping[str, Split] = {
    "train": "train",
    "test": "held_out",
    "validation": "held_out",
    "held_out": "held_out",
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# The list of causes: eight lines, one right after the other.
_LIST_OF_CAUSES = re.compile("".join(rf"^ *{label} *[:.)] *(\S.*)\n" for label in LABELS), re.MULTILINE)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """One valid row and where it stood."""

    question: str
    answer: str
    where: str


def load_problems(
    source: str, split: Split, held_out_share: float, randomise_seed: int | None
) -> list[Problem]:
    """The problems of a split of `source`: a file, a directory with a train and a test file, or a hub id.

    Where the data have a train and a test split of their own, they are ours too, and a question that is in both is left
    out of the training; else the question's hash decides. With a seed, each question gets randomised labels.

    Raises:
        ValueError: there is nothing to read, or a row is not as it should be.
    """
    parts = _read(source)
    if len({_SPLIT_NAMES.get(name) for name in parts} - {None}) == 2:
        by_split: dict[Split, list[Row]] = {"train": [], "held_out": []}
        for name, rows in parts.items():
            if name in _SPLIT_NAMES:
                by_split[_SPLIT_NAMES[name]] += _valid(rows)
        held_out = {row.question for row in by_split["held_out"]}
        training = [row for row in by_split["train"] if row.question not in held_out]
        if left_out := len(by_split["train"]) - len(training):
            logger.warning("%s: %d training questions are test questions too and left out", source, left_out)
        chosen = training if split == "train" else by_split["held_out"]
    else:
        every = [row for rows in parts.values() for row in _valid(rows)]
        chosen = [row for row in every if split_of(row.question, held_out_share) == split]
    return [_problem(row, randomise_seed) for row in chosen]


_Raw = Iterable[tuple[str, Mapping[str, Any]]]  # where it stood, and the row


def _read(source: str) -> dict[str, _Raw]:
    """The parts of a source by name: `train` and `test`, or one with the source's own name."""
    path = Path(source).expanduser()
    if path.is_file():
        return {path.stem: _read_file(path)}
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not files:
            raise ValueError(f"{source}: no {', '.join(SUFFIXES)} file in this directory")
        return {_part_name(file): _read_file(file) for file in files}
    if _HUB_ID.fullmatch(source):
        return _read_hub(source)
    raise ValueError(f"{source}: there is no such file, and it is not a hub id like netop/TeleLogs")


def _part_name(file: Path) -> str:
    """`train` of `train-00000-of-00001.parquet` or `telelogs_train.jsonl`; else the whole name."""
    words = re.split(r"[-_.\s]", file.stem.lower())
    return next((name for name in _SPLIT_NAMES if name in words), file.stem)


def _read_file(file: Path) -> _Raw:
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{file}: it is none of {', '.join(SUFFIXES)}")
    if file.suffix == ".parquet":
        return _read_parquet(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error.reason} at byte {error.start})") from None
    if file.suffix == ".csv":
        reader = csv.DictReader(text.splitlines(keepends=True))
        return ((f"{file}, row {n}", row) for n, row in enumerate(reader, start=1))
    if file.suffix == ".jsonl":
        lines = ((n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip())
        return ((f"{file}, line {n}", _json(line, f"{file}, line {n}")) for n, line in lines)
    rows = _json(text, str(file))
    if not isinstance(rows, list):
        raise ValueError(f"{file}: not a list of rows")
    return ((f"{file}, row {n}", row) for n, row in enumerate(rows, start=1))


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None


def _read_parquet(file: Path) -> _Raw:
    from datasets import Dataset  # slow to import

    try:
        rows = Dataset.from_parquet(str(file))
    except Exception as error:  # whatever its readers raise is about the file
        raise ValueError(f"{file}: not to be read as Parquet ({_one_line(error)})") from error
    return ((f"{file}, row {n}", row) for n, row in enumerate(rows, start=1))


def _read_hub(source: str) -> dict[str, _Raw]:
    from datasets import load_dataset  # slow to import

    try:
        parts = load_dataset(source)
    except Exception as error:  # of many kinds: no network, no access, no such data set
        raise ValueError(
            f"{source}: could not be loaded from the hub ({_one_line(error)}); accept its terms there and log in with "
            "`hf auth login`, or name a file that you have"
        ) from error
    return {name: _numbered(f"{source}, {name}", rows) for name, rows in parts.items()}


def _numbered(name: str, rows: Iterable[Mapping[str, Any]]) -> _Raw:
    return ((f"{name} row {n}", row) for n, row in enumerate(rows, start=1))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _valid(rows: _Raw) -> Iterator[Row]:
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


def _problem(row: Row, randomise_seed: int | None) -> Problem:
    labels = tuple(option.printed for option in PUBLISHED)
    if randomise_seed is None:
        return Problem(row.question, labels, row.answer, row.answer)
    # By the question and not by its place, so that the same question always gets the same labels.
    options = randomised_options(row.answer, random.Random(f"telelogs {randomise_seed} {row.question}"))
    question = _with_options(row, options)
    return Problem(
        question, tuple(o.printed for o in options), printed_label(options, row.answer), row.answer
    )


def _with_options(row: Row, options: Sequence[Option]) -> str:
    """The question with another list of causes in place of its own."""
    lists = list(_LIST_OF_CAUSES.finditer(row.question))
    if len(lists) != 1:
        raise ValueError(
            f"{row.where}: the list of causes C1 … C8 is not to be found, so that it cannot be randomised; "
            "set task.options.randomised_labels to false"
        )
    sentences = dict(zip(LABELS, lists[0].groups(), strict=True))
    written = "".join(f"{option.printed}: {sentences[option.cause].rstrip()}\n" for option in options)
    before, after = row.question[: lists[0].start()], row.question[lists[0].end() :]
    counted = re.sub(r"\b(8|eight)\b(?=[\w\s-]{0,20}causes)", str(len(options)), before, flags=re.IGNORECASE)
    return counted + written + after
