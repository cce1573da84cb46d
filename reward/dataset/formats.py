"""The readers of data files: JSON lines, JSON, CSV and Parquet. Each returns all rows, with their locations.

A reader raises DataError, which names the row, for the mistakes that it knows. `read_file` turns whatever else a
library raises into one.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.core.reading import open_regular
from reward.dataset.values import DataError, Located, Row, describe, one_line, plain_rows, refuse

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_COMPRESSED = ".gz"
_BLANKS = re.compile(r"[ \t\r\n]*")
MAX_ROWS_WITH_MISTAKES = 1000
"""A file with more invalid rows has another format, and the rest of it is not read."""


def suffix_of(name: str) -> str | None:
    """Return the suffix in `SUFFIXES` that a file's name ends in, apart from `.gz`, or None."""
    suffix = Path(name.lower().removesuffix(_COMPRESSED)).suffix
    return suffix if suffix in SUFFIXES else None


def read_file(path: Path, name: str, delimiter: str | None = None) -> list[Located]:
    """Return the rows of a data file.

    Args:
        path: the file.
        name: its name, which decides its format and appears in the locations of rows.
        delimiter: the delimiter of a CSV file, if it is not the usual one.

    Raises:
        DataError: if the file cannot be read, or a row is invalid.
    """
    with one_line(name):
        return plain_rows(_rows(path, name, delimiter))


def _rows(path: Path, name: str, delimiter: str | None) -> Iterable[Located]:
    suffix = suffix_of(name)
    with os.fdopen(open_regular(path), "rb") as file:
        if suffix == ".parquet":
            return read_parquet(path, name)
        data = file.read()
    if name.lower().endswith(_COMPRESSED):
        data = gzip.decompress(data)
    match suffix:
        case ".jsonl" | ".ndjson":
            return read_jsonl(data, name)
        case ".json":
            return read_json(data, name)
        case ".csv" | ".tsv":
            return read_csv(data, name, delimiter or ("," if suffix == ".csv" else "\t"))
    raise DataError(f"{name}: the name of a data file ends in {', '.join(SUFFIXES)}")


# --- JSON


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise DataError(f"the field {repeated!r:.60} appears twice in one object")
    return row


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise DataError(f"the number {text[:40]} is beyond the largest float")
    return number


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_float=_finite,
    parse_constant=lambda name: None,  # NaN, Infinity and -Infinity, which pandas and others write
)


def read_jsonl(data: bytes, name: str) -> Iterator[Located]:
    """Yield every object of JSON lines. Empty lines are skipped.

    Raises:
        DataError: after the last row, if some lines are not objects.
    """
    mistakes: list[str] = []
    for number, line in enumerate(data.splitlines(), start=1):
        where = f"{name}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if not text:
                continue
            row = _DECODER.decode(text)
        except DataError as error:
            mistakes.append(f"{where}: {error}")
        except UnicodeDecodeError as error:
            mistakes.append(f"{where}: byte {error.start + 1} is not UTF-8")
        except json.JSONDecodeError as error:
            mistakes.append(f"{where}: not JSON ({error.msg} at column {error.colno})")
        # numbers with thousands of digits, lists nested a thousand deep
        except (ValueError, RecursionError) as error:
            mistakes.append(f"{where}: not readable as JSON ({error})")
        else:
            if isinstance(row, dict):
                yield where, row
            else:
                mistakes.append(f"{where}: not an object but {text[:40]}")
        if len(mistakes) >= MAX_ROWS_WITH_MISTAKES:
            break
    refuse(mistakes)


def read_json(data: bytes, name: str) -> Iterator[Located]:
    """Yield the objects of a JSON document, which is a list of objects, or has an object on each line.

    Raises:
        DataError: if it is neither.
    """
    if not data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        try:
            yield from read_jsonl(data, name)
        except DataError as error:
            raise DataError(
                f"{error} (a .json file is a list of objects, or has an object on each line)"
            ) from None
        return
    text = _decoded(data, name)
    position = _next(text, text.index("[") + 1)
    closed = text.startswith("]", position)
    mistakes: list[str] = []
    number = 0
    while not closed:
        number += 1
        where = f"{name}, row {number}"
        try:
            row, end = _DECODER.raw_decode(text, position)
            if isinstance(row, dict):
                yield where, row
            else:
                mistakes.append(f"{where}: not an object but {text[position : min(end, position + 40)]}")
            position = _next(text, end)
            closed = text.startswith("]", position)
            if not closed and not text.startswith(",", position):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: not JSON ({error.msg} at line {error.lineno}, column {error.colno})"
            ) from None
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not readable as JSON ({error})") from None
        if not closed:
            position = _next(text, position + 1)
    if _next(text, position + 1) < len(text):
        raise DataError(f"{name}: text follows the list of {number} rows")
    refuse(mistakes)


def _next(text: str, position: int) -> int:
    """Return the position of the next character that is not blank."""
    found = _BLANKS.match(text, position)
    return found.end() if found else position


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{name}:{line}: not UTF-8 ({error.reason})") from None


# --- CSV


def read_csv(data: bytes, name: str, delimiter: str) -> Iterator[Located]:
    r"""Yield the rows of a CSV file with a header. Every cell is text. Quoted cells may contain line breaks.

    Lines end with `\n` or `\r\n`, or with `\r` in a file without any `\n`.

    Raises:
        DataError: if a row has more or fewer cells than the header, or the text is not CSV.
    """
    text = _decoded(data, name)
    if (position := text.find("\0")) >= 0:
        line = text.count("\n", 0, position) + 1
        raise DataError(f"{name}:{line}: a NUL byte")
    lines = io.StringIO(text, newline="\n" if "\n" in text else "\r")
    mistakes: list[str] = []
    number = 0
    with _cells_of_any_length():
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = _header(next(filter(None, reader), []), name)
            for cells in filter(None, reader):  # an empty line has no cells
                number += 1
                if len(cells) == len(header):
                    yield f"{name}, row {number}", dict(zip(header, cells, strict=True))
                    continue
                mistakes.append(f"{name}, row {number}: {len(cells)} cells, but the header has {len(header)}")
                if len(mistakes) >= MAX_ROWS_WITH_MISTAKES:
                    break
        except csv.Error as error:
            reason = str(error).partition(" - ")[0]
            raise DataError(
                f"{name}, row {number + 1}: not CSV ({reason}, up to line {reader.line_num})"
            ) from None
    refuse(mistakes)


def _header(names: list[str], name: str) -> list[str]:
    for column, field in enumerate(names, start=1):
        if not field.strip():
            raise DataError(
                f"{name}, header: column {column} has no name (pandas writes its index so: use to_csv(index=False))"
            )
    _refuse_repeated(names, f"{name}, header")
    return names


def _refuse_repeated(names: list[str], where: str) -> None:
    if repeated := [field for field in names if names.count(field) > 1]:
        raise DataError(f"{where}: two columns have the name {repeated[0]!r:.60}")


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Lift the limit of 131,072 characters per cell, which is a global of the module `csv`."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


# --- Parquet and other Arrow tables


def read_parquet(path: Path, name: str) -> list[Located]:
    """Return the rows of a Parquet file. Checksums in the file are verified.

    Raises:
        DataError: if a row cannot be read.
        Exception: whatever pyarrow raises for a file that is not Parquet.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read()
    return table_rows(table, f"{name}, row")


def table_rows(table: pyarrow.Table, where: str) -> list[Located]:
    """Return the rows of an Arrow table, in pyarrow's Python types. `where` and a number are their locations.

    Raises:
        DataError: if a value has no Python type, such as a year beyond 9999. The message names the row.
    """
    _refuse_repeated(table.column_names, where.rpartition(",")[0])
    try:
        rows = table.to_pylist(maps_as_pydicts="strict")
    except Exception as error:  # of many types; which row it is shows below
        for number in range(table.num_rows):
            try:
                table.slice(number, 1).to_pylist(maps_as_pydicts="strict")
            except Exception as found:
                raise DataError(f"{where} {number + 1}: {describe(found)}") from None
        raise DataError(f"{where.rpartition(',')[0]}: {describe(error)}") from None
    return [(f"{where} {number}", row) for number, row in enumerate(rows, start=1)]
