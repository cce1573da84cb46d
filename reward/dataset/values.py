"""The values of rows, the same for every source, and the errors of the readers. Torch-free.

A row has the types of JSON: text, whole numbers, finite floats, true and false, None, lists, and objects with text
keys. Columns of other formats are converted once, here:

    NaN, infinity                   None, as null
    date, time, timestamp           text in ISO 8601, as JSON has them
    duration                        its seconds
    decimal                         an int or a float of the same value; otherwise the row is refused
    UUID                            text
    binary                          bytes; such a field cannot be a prompt or a reference
"""

from __future__ import annotations

import datetime
import math
import unicodedata
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from cluster.core.text import valid_text

Row = dict[str, Any]
Located = tuple[str, Row]
"""A readable location, such as `data.jsonl:17`, and the row."""

SHOWN_MISTAKES = 3
SHOWN_FIELDS = 8
MAX_MESSAGE_CHARACTERS = 1000
MAX_FOREIGN_CHARACTERS = 300
MAX_DEPTH = 100
"""The deepest nesting of lists and objects. Python's own limit depends on the caller, and would be met elsewhere."""

_PLAIN = frozenset({str, int, bool, type(None)})
_INVISIBLE = {"Zs", "Zl", "Zp", "Cc", "Cf"}
"""The Unicode categories of blanks, control and format characters."""


class DataError(ValueError):
    """A mistake in the data. Its message is one printable line that names the file, and the row if there is one."""

    def __init__(self, message: str) -> None:
        super().__init__(valid_text(" ".join(message.split()), MAX_MESSAGE_CHARACTERS))


@contextmanager
def one_line(what: str, fix: str = "") -> Iterator[None]:
    """Turn every exception of a reader into a DataError, whose message is one line that names `what`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # pyarrow, datasets, huggingface_hub, httpx, yaml … have many types
        raise DataError(f"{what} cannot be read ({describe(error)}){fix}") from error


def describe(error: BaseException) -> str:
    """Return the type and the beginning of the message of an exception of a library, as one line."""
    message = " ".join(str(error).split()).rstrip(".")
    if len(message) > MAX_FOREIGN_CHARACTERS:
        message = f"{message[:MAX_FOREIGN_CHARACTERS]}…"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def refuse(mistakes: Sequence[str]) -> None:
    """Raise DataError with the first mistakes and the number of further ones, if there are any."""
    if not mistakes:
        return
    rest = len(mistakes) - SHOWN_MISTAKES
    raise DataError("; ".join(mistakes[:SHOWN_MISTAKES]) + (f"; and {rest} more" if rest > 0 else ""))


def plain_rows(rows: Iterable[Located]) -> list[Located]:
    """Return the rows with the types of JSON.

    Raises:
        DataError: if a value has no such type. The message names the rows.
    """
    plain: list[Located] = []
    mistakes: list[str] = []
    for where, row in rows:
        name = None
        try:
            converted = {}
            for name, value in row.items():
                converted[name] = plain_value(value)
        except ValueError as error:
            mistakes.append(f"{where}: the field {name!r:.60} has {error}")
        else:
            plain.append((where, converted))
    refuse(mistakes)
    return plain


def plain_value(value: Any, depth: int = 1) -> Any:
    """Return a value with the types of JSON, or bytes.

    Raises:
        ValueError: if there is no such value.
    """
    if type(value) in _PLAIN:  # much faster than the patterns below
        return value
    match value:
        case None | bool() | str() | bytes():
            return value
        case float():
            return float(value) if math.isfinite(value) else None
        case int():
            return int(value)
        case list() | tuple() if depth < MAX_DEPTH:
            return [plain_value(item, depth + 1) for item in value]
        case dict() if depth < MAX_DEPTH:
            return {str(key): plain_value(item, depth + 1) for key, item in value.items()}
        case list() | tuple() | dict():
            raise ValueError(f"lists or objects nested deeper than {MAX_DEPTH}")
        case Decimal():
            return _number(value)
        case datetime.date() | datetime.time():  # a datetime is a date
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case uuid.UUID():
            return str(value)
    if type(value).__module__ == "numpy":  # scalars of half precision, and arrays
        return plain_value(value.tolist(), depth)
    raise ValueError(f"a value of the type {type(value).__name__}")


def _number(value: Decimal) -> int | float | None:
    if not value.is_finite():
        return None
    if value == value.to_integral_value():
        return int(value)
    if Decimal(repr(float(value))) != value:
        raise ValueError(f"the decimal {value}, which no float can express; store it as text")
    return float(value)


def is_missing(value: Any) -> bool:
    """Return True for None, NaN, infinity, text without a visible character, and empty lists and objects."""
    if isinstance(value, str):
        return all(unicodedata.category(character) in _INVISIBLE for character in value)
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or (isinstance(value, list | dict | bytes) and not value)


def gap(row: Row, name: str) -> str | None:
    """Return why a row has no value in a field that it needs, or None if it has one.

    The value counts as missing if it is binary or text that no tokenizer takes, too.
    """
    if name not in row:
        return f"there is no field {name!r} (fields: {', '.join(list(row)[:SHOWN_FIELDS]) or 'none'})"
    value = row[name]
    if value is None:
        return f"the field {name!r} has no value (null, NaN or infinite)"
    if is_missing(value):
        return f"the field {name!r} is empty"
    if isinstance(value, bytes):
        return f"the field {name!r} is binary; store it as text"
    if isinstance(value, str) and not is_text(value):
        return f"the field {name!r} contains half of a surrogate pair"
    return None


def is_text(value: str) -> bool:
    """Return True if the text can be written as UTF-8. JSON can escape half of a surrogate pair, which cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
