"""Reads rows from where the user has them: a file, a directory, the hub. They are never part of this repository: on the
hub everybody has to accept the data set's terms."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reward.dataset.reading import read_jsonl, read_parquet

RawRows = Iterable[tuple[str, Mapping[str, Any]]]
"""Pairs of where a row stood, and the row, which is not looked at."""

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def read_source(source: str) -> dict[str, RawRows]:
    """The parts of a file, a directory or a hub data set, by name. Files whose names say `train` or `test` make up the
    part of that name.

    Raises:
        ValueError: there is nothing to read, at once or when the rows are asked for.
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
    raise ValueError(f"{source}: there is no such file, and it is not a hub id like netop/TeleLogs")


def _part_name(file: Path) -> str:
    """`train` of `train-00000-of-00001.parquet` or `telelogs_train.jsonl`; else the whole name."""
    words = re.split(r"[-_.\s]", file.stem.lower())
    return next((name for name in ("train", "test") if name in words), file.stem)


def _read_file(file: Path) -> RawRows:
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{file}: it is none of {', '.join(SUFFIXES)}")
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
    except Exception as error:  # of many kinds: no network, no access, no such data set
        raise ValueError(
            f"{source}: could not be loaded from the hub ({_one_line(error)}); accept its terms there and log in with "
            "`hf auth login`, or name a file that you have"
        ) from error
    return {name: _numbered(f"{source}, {name}", rows) for name, rows in parts.items()}


def _numbered(name: str, rows: Iterable[Mapping[str, Any]]) -> RawRows:
    return ((f"{name} row {n}", row) for n, row in enumerate(rows, start=1))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
