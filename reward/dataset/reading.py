"""Read the rows of a JSONL or Parquet file, or of a Hugging Face data set, each with its location. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Located = tuple[str, Row]
"""A readable location, such as `data.jsonl:17`, and the row."""

SHOWN_MISTAKES = 3
SHOWN_FIELDS = 8


def refuse(mistakes: Sequence[str]) -> None:
    """Raise ValueError with the first mistakes and the number of further ones, if there are any."""
    if not mistakes:
        return
    rest = len(mistakes) - SHOWN_MISTAKES
    raise ValueError("; ".join(mistakes[:SHOWN_MISTAKES]) + (f"; and {rest} more" if rest > 0 else ""))


def read_rows(source: str, subset: str | None, split: str) -> list[Located]:
    """Return all rows of `source`: a `.jsonl` or `.parquet` file, a directory that `datasets` can load, or a hub id.

    `subset` and `split` select part of a Hugging Face data set; files have neither.

    Raises:
        ValueError: if the source does not exist, has another format than its name says, or is empty.
    """
    path = Path(source).expanduser()
    match path.suffix:
        case ".jsonl" | ".ndjson":
            rows = list(read_jsonl(_existing(path)))
        case ".parquet":
            rows = read_parquet(_existing(path))
        case _:
            rows = _read_data_set(source, path, subset, split)
    if not rows:
        raise ValueError(f"{source} contains no rows")
    return rows


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"there is no file {path} (searched from {Path.cwd()})")
    return path


def read_jsonl(path: Path) -> Iterator[Located]:
    """Yield every object of a JSONL file. Empty lines are skipped.

    Raises:
        ValueError: after the last row, if some lines are not objects.
    """
    mistakes = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path.name}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            row = json.loads(text) if text else None
        except UnicodeDecodeError as error:
            mistakes.append(f"{where}: byte {error.start + 1} is not UTF-8")
            continue
        except json.JSONDecodeError as error:
            mistakes.append(f"{where}: not JSON ({error.msg} at column {error.colno})")
            continue
        # numbers with thousands of digits, lists nested a thousand deep
        except (ValueError, RecursionError) as error:
            mistakes.append(f"{where}: not readable as JSON ({error})")
            continue
        if isinstance(row, dict):
            yield where, row
        elif text:
            mistakes.append(f"{where}: not an object but {text[:40]}")
    refuse(mistakes)


def read_parquet(path: Path) -> list[Located]:
    """Return every row of a Parquet file.

    Raises:
        ValueError: if it is not a Parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path.name} cannot be read as a Parquet file ({_first_line(error)})") from None
    return [(f"{path.name}, row {number}", row) for number, row in enumerate(table.to_pylist(), start=1)]


def _read_data_set(source: str, path: Path, subset: str | None, split: str) -> list[Located]:
    import datasets

    try:
        if (path / "state.json").is_file() or (
            path / "dataset_dict.json"
        ).is_file():  # written by save_to_disk
            loaded = datasets.load_from_disk(str(path))
            rows = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            rows = datasets.load_dataset(str(path) if path.is_dir() else source, subset, split=split)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        kind = "" if path.is_dir() else "; a file's name ends in .jsonl or .parquet"
        raise ValueError(f"the data set {source} cannot be loaded ({_first_line(error)}){kind}") from None
    return [(f"{source}, {split} row {number}", row) for number, row in enumerate(rows, start=1)]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
