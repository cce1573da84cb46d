"""Find the answer in a text: a model's response, or the reference of a row."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_MARK = "####"
_TOKEN = re.compile(r"[^\s$]+")


def last_answer(text: str) -> str | None:
    r"""Return the content of the last `\boxed{…}`, or, without a box, the rest of the line after the last `####`.

    `\fbox{…}`, `\boxed {…}` and `\boxed 8` are boxes too. The result is None if the text has neither a box nor a mark,
    or if the last box is not closed.
    """
    boxes = list(_BOX.finditer(text))
    return _boxed(text, boxes[-1].end()) if boxes else _marked(text)


def reference_answer(value: Any) -> str:
    """Return the answer in the reference field of a row.

    In a text the mark `####` takes precedence over a box, and a text without either is the answer itself. Numbers and
    lists are answers as they are.

    Raises:
        ValueError: if the value is no answer: missing, empty, not a number, or of another type.
    """
    if isinstance(value, str):
        marked = _marked(value)
        found = last_answer(value) if marked is None else marked
        answer = value.strip() if found is None else found
    else:
        answer = _written(value)
    if not answer:
        raise ValueError("the reference is empty")
    return answer


def _written(value: Any) -> str:
    """Return a reference that is not text as text."""
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return ", ".join(reference_answer(item) for item in value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise ValueError(
            f"the reference is of type {type(value).__name__}, not text, a number or a list of these"
        )
    if not math.isfinite(value):
        raise ValueError(f"the reference is {value}")
    digits = f"{Decimal(repr(value)) if isinstance(value, float) else Decimal(value):f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _marked(text: str) -> str | None:
    _, mark, tail = text.rpartition(_MARK)
    return tail.strip().partition("\n")[0].strip() if mark else None


def _boxed(text: str, start: int) -> str | None:
    """Return the content of a box whose command ends before `start`."""
    if text[start : start + 1] == "{":
        return _up_to_closing_brace(text, start + 1)
    token = _TOKEN.match(text, start)
    return token.group() if token else None


def _up_to_closing_brace(text: str, start: int) -> str | None:
    """Return the text from `start` to the brace that closes the one before `start`."""
    depth, position = 1, start
    while position < len(text):
        character = text[position]
        if character == "\\":  # an escaped brace, or a line break before a group: `\\{`
            position += 2
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start:position].strip()
        position += 1
    return None
