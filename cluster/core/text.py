"""Text from other sources, made safe to print: the output of a model, and the log of a job. Values as JSON. Torch-free,
Ray-free.

The functions do not escape markup; the modules that write HTML do.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, SupportsFloat

_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # operating system commands: window titles, links, the clipboard
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"  # device control strings and their like
    r"|\x1b\[[0-?]*[ -/]*[@-~]?"  # colors, cursor movements
    r"|\x1b[ -/]*[0-~]?"  # the rest
    r"|\x9b[0-?]*[ -/]*[@-~]?"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters except tab and line feed, and the characters that change the direction of text."""


_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters except tab and line feed, and halves of surrogate pairs, which UTF-8 cannot express."""


def valid_text(text: str, limit: int) -> str:
    r"""Return the first `limit` characters of `text` as valid UTF-8 without control characters.

    Each control character, except tab and line feed, and each half of a surrogate pair is written as `\u001b`.
    """
    if type(text) is not str or len(text) > limit:
        text = str.__str__(text)[:limit]
    if (
        text.isprintable() or _UNSAFE.search(text) is None
    ):  # the first test is faster, and nearly always enough
        return text
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)[:limit]


def utf8_text(text: str) -> str:
    r"""Return `text` with halves of surrogate pairs, which UTF-8 cannot express, written as `\ud83d`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def plain_text(text: str) -> str:
    """Return `text` without terminal escapes and control characters. Line breaks and tabs stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))


def visible_text(text: object, limit: int | None = None) -> str:
    r"""Return `text` with control and format characters, and halves of surrogate pairs, written as `\u001b`. Line
    breaks and tabs stay. Text beyond `limit` characters is cut, with a note."""
    shown = str(text)
    if limit is not None and len(shown) > limit:
        shown = f"{shown[:limit]}\n[… {len(shown) - limit} more characters]"
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
        else f"\\u{ord(character):04x}"
        for character in shown
    )


def json_text(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON that every program can read.

    NaN and infinity, which JSON lacks, become null. Scalars of NumPy and torch become numbers, keys become strings, and
    values of other types become strings.
    """
    return json.dumps(_jsonable(value), indent=indent, allow_nan=False)


def without_nulls(value: Any) -> Any:
    """Return a value of JSON without the fields of its objects that are null.

    Parquet gives every row the fields of all rows, so that `{"role": "user"}` becomes `{"role": "user", "name": null}`.
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    if not isinstance(value, SupportsFloat):
        return str(value)
    try:
        number = float(value)
    except (TypeError, ValueError):  # an array of several numbers
        return str(value)
    return number if math.isfinite(number) else None
