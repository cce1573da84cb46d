"""Read a cleaned answer: find out which of the forms it has (`forms.py`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache

from reward.tasks.math.cleaning import without_group
from reward.tasks.math.expressions import NotReadableError, closing
from reward.tasks.math.forms import (
    ELLIPSIS,
    Based,
    Clock,
    Date,
    Equation,
    Form,
    Inequality,
    Infinite,
    Items,
    Matrix,
    Ratio,
    Sign,
    Union,
    Unread,
    Word,
)
from reward.tasks.math.quantities import FUNCTION, read_quantity, sum_of_units

MAX_ITEMS = 64
MAX_DEPTH = 8

_SEPARATOR = re.compile(
    r",?\s*\\text\s*\{\s*,?\s*(?:and|or)\s*\}\s*|,?\s+(?:and|or)\s+|,?\s*\\(?:land|lor|wedge|vee)(?![a-zA-Z])|[,;]"
)
_UNION = re.compile(r"\\cup(?![a-zA-Z])")
_RELATION = re.compile(r"\\(?:le|ge|ne)(?![a-zA-Z])|<=|>=|!=|(?<![<>!])=|<|>")
_SIGNS: dict[str, Sign] = {
    r"\le": "<=", r"\ge": ">=", r"\ne": "!=", "<=": "<=", ">=": ">=", "!=": "!=", "=": "=", "<": "<", ">": ">"
}  # fmt: skip
_MEMBER = re.compile(r"^\\?[a-zA-Z]+(?:_\{?\w+\}?)?\s*\\in(?![a-zA-Z])\s*(?=.)")
_SET_BUILDER = re.compile(r"^[a-zA-Z]\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?[|:]")
_GREEK = re.compile(r"^\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|rho|sigma|phi|omega)$")
_LABEL = re.compile(
    r"^(?:[a-zA-Z](?:_\{?\w+\}?)?(?:'|\^\{?(?:-1|T)\}?)?|[a-zA-Z](?::[a-zA-Z])+"  # x, x_1, f', A^{-1}, a:b
    r"|\\[a-zA-Z]+|\\(?:vec|hat|bar|overrightarrow)\s*\{?\w+\}?"  # \theta, \vec{v}
    r"|[a-zA-Z]'*(?:_\{?\w+\}?)?(?:\^\{?-1\}?)?\s*\([^()=]*\)"  # f(x), P(A \cup B)
    r"|m?\s*\\angle\s*\w+|\|[A-Z]{2}\||\\overline\s*\{[A-Z]{2}\}"  # \angle ABC, |AB|
    r"|\(\s*\\?[a-zA-Z]+(?:\s*,\s*\\?[a-zA-Z]+)+\s*\)"  # (x, y)
    r"|[A-Z]{2}|[a-zA-Z]{3}[a-zA-Z ]*)$"  # AB, Area of the square
)
_CHOICE_WITH_VALUE = re.compile(r"^\(([A-E])\)\s*[-\w\\$][^,;(]*$")
_CHOICE_BEFORE = re.compile(r"^(?:option|choice|answer)\s+(?=\(?[A-Za-z]\)?$)", re.IGNORECASE)
_WORDS = re.compile(r"^[A-Za-z][A-Za-z' .\-]*$")
_CLOCK = re.compile(
    r"^(\d{1,2}):(\d{2})(?::(\d{2}))?\s*(?:\\text\s*\{)?\s*(?:([aApP])\.?\s?[mM]\.?|hours|hrs|h|o'clock)?\s*\}?\.?$"
)
_HOUR = re.compile(r"^(\d{1,2})\s*(?:\\text\s*\{)?\s*([aApP])\.?\s?[mM]\.?\s*\}?\.?$")
_RATIO = re.compile(r"^\d+(?:\.\d+)?(?:\s*(?::|\bto\b)\s*\d+(?:\.\d+)?)+$")
_DATES = (
    re.compile(r"^(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})$"),
    re.compile(r"^(?P<month>\d{1,2})[/](?P<day>\d{1,2})[/](?P<year>\d{4})$"),
    re.compile(r"^(?P<name>[A-Za-z]{3,9})\.?\s+(?P<day>\d{1,2})(?:st|nd|rd|th)?(?:,?\s+(?P<year>\d{4}))?$"),
    re.compile(
        r"^(?P<day>\d{1,2})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<name>[A-Za-z]{3,9})\.?(?:,?\s+(?P<year>\d{4}))?$"
    ),
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_BASES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_BASED = re.compile(
    r"^\(?([0-9A-Fa-f]+)\)?\s*(?:_\s*\{?\s*(?:base\s*)?|\(?\s*base\s*)"
    rf"(\d{{1,2}}|{'|'.join(_BASES)})\s*[}})]?$"
)
_MATRIX = re.compile(
    r"^([^&]*?)\s*\\begin\{([a-z]*matrix|array)\}(?:(?<=array\})\{[^{}]*\})?(.*)\\end\{\2\}$", re.DOTALL
)


@lru_cache(maxsize=4096)
def read(text: str) -> Form:
    """Return the form of a cleaned answer. Never raises on any text."""
    try:
        return _read(text.strip(), 0)
    except NotReadableError:
        return Unread(text)


def _read(text: str, depth: int) -> Form:
    if depth > MAX_DEPTH:
        raise NotReadableError(f"nested more than {MAX_DEPTH} deep")
    if member := _MEMBER.match(text):
        text = text[member.end() :]
    readers: tuple[Callable[[str, int], Form | None], ...] = (
        _special, _union, _list, _relation, _bracketed, _matrix, _alternatives, _word
    )  # fmt: skip
    for reader in readers:
        if (form := reader(text, depth)) is not None:
            return form
    return read_quantity(text)


def _special(text: str, depth: int) -> Form | None:
    """Read what has a fixed pattern: times, dates, ratios, numbers with a base, infinity, an ellipsis."""
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).strip()
    if re.fullmatch(r"\\mathbb\s*\{?R\}?|all (?:the )?real(?:s| numbers)?", plain):
        return Items((Infinite(False), Infinite(True)), "(", ")")
    if plain in ("infinity", "+infinity", "-infinity"):
        return Infinite(plain[0] != "-")
    plain = plain.removeprefix("on ")
    if plain in ("\\ldots", "..."):
        return ELLIPSIS
    if (choice := _CHOICE_WITH_VALUE.match(plain)) and not re.search(r"\b(?:or|and)\b", plain):
        return Word(choice[1])
    if choice := re.fullmatch(r"\(\s*([A-Za-z])\s*\)", plain):
        return Word(choice[1].upper())
    if text == "\\{\\}" or plain == "\\emptyset":
        return Items((), "\\{", "\\}")
    plain = re.sub(r"\s*\bnoon$", " p.m.", re.sub(r"\s*\bmidnight$", " a.m.", plain))
    if found := _CLOCK.match(plain):
        hour, minute, second, half = found.groups()
        if int(minute) < 60 and int(second or 0) < 60:
            return Clock((int(hour), int(minute), int(second or 0)), f"{half.lower()}m" if half else "")
    if found := _HOUR.match(plain):
        return Clock((int(found[1]), 0, 0), f"{found[2].lower()}m")
    if _RATIO.match(plain):
        return Ratio(tuple(Fraction(term.strip()) for term in re.split(r":|\bto\b", plain)))
    if (date := _date(plain)) is not None:
        return date
    if found := _BASED.match(plain):
        base = int(found[2]) if found[2].isdecimal() else _BASES.index(found[2]) + 2
        return Based(found[1].upper().lstrip("0") or "0", base)
    if found := re.match(r"^([+-]?)\s*\\infty$", text):
        return Infinite(found[1] != "-")
    return None


def _date(text: str) -> Date | None:
    for pattern in _DATES:
        if found := pattern.match(text):
            parts = found.groupdict()
            name = (parts.get("name") or "").lower()[:3]
            if name and name not in _MONTHS:
                continue
            month = _MONTHS.index(name) + 1 if name else int(parts["month"])
            day = int(parts["day"])
            if 1 <= month <= 12 and 1 <= day <= 31:
                return Date(int(parts.get("year") or 0), month, day)
    return None


def _split(text: str, separator: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Yield the parts of a text between separators outside all brackets, each with the separator after it."""
    start = position = 0
    while position < len(text):
        found = separator.match(text, position)
        if found:
            yield text[start:position].strip(), found.group().strip()
            start = position = found.end()
        else:
            position = _after_group(text, position)
    yield text[start:].strip(), ""


def _after_group(text: str, position: int) -> int:
    """Return the position after the bracket, command or character at `position`."""
    for opened, closed in (("\\begin{", "\\end{"), ("\\{", "\\}"), ("\\langle", "\\rangle")):
        if text.startswith(opened, position):
            end = text.find(closed, position)
            if end < 0:
                raise NotReadableError(f"{opened!r} is not closed")
            return (
                text.index("}", end) + 1 if opened == "\\begin{" and "}" in text[end:] else end + len(closed)
            )
    if text[position] == "{":
        return closing(text, position) + 1
    if text[position] in "([":
        return _interval_end(text, position) + 1
    return position + 2 if text[position] == "\\" else position + 1


def _interval_end(text: str, start: int) -> int:
    """Return where the bracket at `start` closes, by a round or a square one."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in "([") - (text[position] in ")]")
        if depth == 0:
            return position
    raise NotReadableError(f"{text[start]!r} is not closed")


def _union(text: str, depth: int) -> Form | None:
    parts = [part for part, _ in _split(text, _UNION)]
    return Union(tuple(_read(part, depth + 1) for part in parts)) if len(parts) > 1 else None


def _list(text: str, depth: int) -> Form | None:
    parts = [part for part, _ in _split(text, _SEPARATOR)]
    parts = [part for part in parts if part] if len(parts) > 1 else parts
    if len(parts) < 2:
        return None
    if len(parts) > MAX_ITEMS:
        raise NotReadableError(f"more than {MAX_ITEMS} items")
    items = tuple(_read(part, depth + 1) for part in parts)
    intervals = [
        item.interval for item in items if isinstance(item, Inequality) and item.interval is not None
    ]
    if len(intervals) == len(items):
        return Union(tuple(intervals))
    return sum_of_units(items, text) or Items(_flat(items))


def _flat(items: tuple[Form, ...]) -> tuple[Form, ...]:
    """Replace `±2` in a list by its two values."""
    return tuple(
        part
        for item in items
        for part in (item.items if isinstance(item, Items) and not item.opened else (item,))
    )


def _relation(text: str, depth: int) -> Form | None:
    parts = list(_split(text, _RELATION))
    if len(parts) == 1 or any(not part for part, _ in parts):
        return None
    sides, signs = [part for part, _ in parts], [_SIGNS[sign] for _, sign in parts[:-1]]
    if set(signs) == {"="}:
        return _equation(sides, depth)
    if len(signs) == 1:
        return _inequality(sides[0], signs[0], sides[1], depth)
    if len(signs) == 2:
        return _between(sides, signs, depth)
    return Unread(text)


def _equation(sides: list[str], depth: int) -> Form:
    name = re.sub(r"\\text\s*\{\s*([^{}]*?)\s*\}", r"\1", sides[0]).strip()
    is_label = bool(_LABEL.match(name)) and name.lstrip("\\") not in ("pi", "infty", "e")
    return Equation(sides[0], sides[-1], name if is_label else None, _read(sides[-1], depth + 1))


_MIRRORED: dict[Sign, Sign] = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "="}


def _inequality(left: str, sign: Sign, right: str, depth: int) -> Form:
    if is_variable(right) and not is_variable(left):
        left, sign, right = right, _MIRRORED[sign], left
    if not is_variable(left):
        return Inequality(left, sign, right)
    bound = _read(right, depth + 1)
    low, high = Infinite(False), Infinite(True)
    intervals: dict[Sign, Form] = {
        ">": Items((bound, high), "(", ")"),
        ">=": Items((bound, high), "[", ")"),
        "<": Items((low, bound), "(", ")"),
        "<=": Items((low, bound), "(", "]"),
        "!=": Union((Items((low, bound), "(", ")"), Items((bound, high), "(", ")"))),
    }
    return Inequality(left, sign, right, left, intervals[sign])


def _between(sides: list[str], signs: list[Sign], depth: int) -> Form | None:
    """Read `1 < x ≤ 2` and `2 ≥ x > 1`."""
    if signs[0][0] != signs[1][0] or signs[0][0] not in "<>" or not is_variable(sides[1]):
        return Unread(" ".join(sides))
    if signs[0][0] == ">":
        sides, signs = sides[::-1], [_MIRRORED[sign] for sign in reversed(signs)]
    opened, closed = "[" if signs[0] == "<=" else "(", "]" if signs[1] == "<=" else ")"
    ends = (_read(sides[0], depth + 1), _read(sides[2], depth + 1))
    return Inequality(sides[0], signs[0], sides[2], sides[1], Items(ends, opened, closed))


def is_variable(text: str) -> bool:
    """Return whether a text is one letter, with or without a subscript, other than the numbers e and i."""
    return text not in ("e", "i") and bool(re.match(r"^[a-zA-Z](?:_\{?\w+\}?)?$", text) or _GREEK.match(text))


def _bracketed(text: str, depth: int) -> Form | None:
    for opened, closed in (("\\{", "\\}"), ("\\langle", "\\rangle")):
        if text.startswith(opened) and text.endswith(closed) and text.find(closed) == len(text) - len(closed):
            content = text[len(opened) : -len(closed)].strip()
            if condition := _SET_BUILDER.match(content):
                return _read(content[condition.end() :].strip(), depth + 1)
            inner = _read(content, depth + 1)
            items = inner.items if isinstance(inner, Items) and not inner.opened else (inner,)
            return Items(items, "\\{", "\\}") if opened == "\\{" else Items(items, "(", ")")
    if text[:1] not in ("(", "[") or _interval_end(text, 0) != len(text) - 1:
        return None
    inner = _read(text[1:-1].strip(), depth + 1)
    if isinstance(inner, Items) and not inner.opened:
        return Items(inner.items, text[0], text[-1])
    return inner


def _matrix(text: str, depth: int) -> Form | None:
    found = _MATRIX.match(text)
    if not found:
        return None
    rows = [row.split("&") for row in found[3].split("\\\\") if row.strip()]
    if sum(map(len, rows)) > MAX_ITEMS:
        raise NotReadableError(f"more than {MAX_ITEMS} elements")
    factor = found[1].removesuffix("\\cdot").strip()
    cells = [[without_group(cell.strip()) for cell in row] for row in rows]
    if factor:
        cells = [[rf"({factor}) \cdot ({cell})" for cell in row] for row in cells]
    return Matrix(tuple(tuple(_read(cell, depth + 1) for cell in row) for row in cells))


def _alternatives(text: str, depth: int) -> Form | None:
    """Read an expression with `±` as its two values."""
    if not re.search(r"\\[pm][pm](?![a-zA-Z])", text):
        return None
    both = [
        re.sub(r"\\pm(?![a-zA-Z])\s*", sign, re.sub(r"\\mp(?![a-zA-Z])\s*", opposite, text))
        for sign, opposite in ("+-", "-+")
    ]
    return Items(tuple(_read(one.removeprefix("+"), depth + 1) for one in both))


def _word(text: str, depth: int) -> Form | None:
    """Read words and letters of choices. `xy` and everything with signs or digits is an expression."""
    marked = re.fullmatch(r"\\text\s*\{([^{}]*)\}", text)
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).strip()
    choice = re.fullmatch(r"\(?\s*([A-Za-z])\s*\)?[.:]?", plain)
    if choice and (marked or len(plain) > 1 or choice[1].isupper()):
        return Word(choice[1].upper() if plain != choice[1] or marked else choice[1])
    plain = _CHOICE_BEFORE.sub("", re.sub(r"^\((.*)\)$", r"\1", plain))
    if len(plain) == 1 and plain.isupper():
        return Word(plain)
    if not _WORDS.match(plain) or FUNCTION.fullmatch(plain.lower()):
        return None
    if not marked and len(plain) <= 2 and not plain.isupper() and plain.lower() != "no":
        return None
    words = re.sub(r"[\s.\-]+", " ", plain).strip().casefold()
    words = re.sub(r"^(?:the|an|a) (?=\w)", "", words).replace("limit does not exist", "does not exist")
    return Word({"dne": "does not exist", "no solutions": "no solution"}.get(words, words))
