"""Read a cleaned answer: find out which of the forms it has (`forms.py`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from reward.tasks.math.expressions import NotReadableError, closing
from reward.tasks.math.fixed_forms import fixed_form
from reward.tasks.math.forms import (
    Congruence,
    Equation,
    Form,
    Items,
    Letters,
    Sign,
    Union,
    Unread,
    Word,
)
from reward.tasks.math.inequalities import between, conditions, excluding, french_interval, inequality
from reward.tasks.math.labels import is_variable, label_of
from reward.tasks.math.piecewise import piecewise
from reward.tasks.math.qualifiers import qualified
from reward.tasks.math.quantities import read_quantity, sum_of_units
from reward.tasks.math.real_sets import is_surely_a_set
from reward.tasks.math.vectors import matrix, unit_vectors
from reward.tasks.math.words import choice_with_value, word

MAX_ITEMS = 64
MAX_DEPTH = 8

_SEPARATOR = re.compile(
    r",?\s*\\text\s*\{\s*,?\s*(?:and|or)\s*\}\s*|,?\s+(?:and|or)\s+|,?\s*\\(?:land|lor|wedge|vee)(?![a-zA-Z])|[,;]"
)
_ALTERNATIVE = re.compile(r",?\s*\\text\s*\{\s*,?\s*or\s*\}\s*|,?\s+or\s+|,?\s*\\(?:lor|vee)(?![a-zA-Z])|;")
_ARROW = re.compile(r"\\to(?![a-zA-Z])")
_POINTS_BUILDER = re.compile(r"^\(\s*([a-z](?:\s*,\s*[a-z])+)\s*\)\s*[|:](.+)$")
_PLUS_MINUS = re.compile(r"\\[pm][pm](?![a-zA-Z])")
_UNION = re.compile(r"\\cup(?![a-zA-Z])")
_RELATION = re.compile(r"\\(?:le|ge|ne)(?![a-zA-Z])|<=|>=|!=|(?<![<>!])=|<|>")
_SIGNS: dict[str, Sign] = {
    r"\le": "<=", r"\ge": ">=", r"\ne": "!=", "<=": "<=", ">=": ">=", "!=": "!=", "=": "=", "<": "<", ">": ">"
}  # fmt: skip
_MEMBER = re.compile(
    r"^(?:\\?[a-zA-Z]+(?:_\{?\w+\}?)?|\(\s*[a-zA-Z](?:\s*,\s*[a-zA-Z])+\s*\))\s*\\in(?![a-zA-Z])\s*(?=.)"
)
_SET_BUILDER = re.compile(r"^([a-zA-Z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?[|:]")


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

    def read_part(part: str) -> Form:
        return _read(part, depth + 1)

    if member := _MEMBER.match(text):
        text = text[member.end() :]
    readers: tuple[Callable[[str, _Reader], Form | None], ...] = (
        _fixed, piecewise, qualified, french_interval, excluding, _union, _solutions, _list, _relation, _bracketed,
        matrix, _alternatives, _word, unit_vectors,
    )  # fmt: skip
    if depth == 0:  # a part of an answer is no choice
        readers = (choice_with_value, *readers)
    for reader in readers:
        if (form := reader(text, read_part)) is not None:
            return form
    return read_quantity(text)


_Reader = Callable[[str], Form]


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


def _union(text: str, read_part: _Reader) -> Form | None:
    parts = [part for part, _ in _split(text, _UNION)]
    if len(parts) == 1:
        return None
    left, *others = [part for part, _ in _split(text, _RELATION)]
    if len(others) == 1 and label_of(left) is not None:  # `D = (0,1) \cup (2,3)`, `A \cup B = \{1, 2\}`
        return None
    return Union(tuple(map(read_part, parts)))


def _solutions(text: str, read_part: _Reader) -> Form | None:
    """Read `x=4, y=0 or x=0, y=4` as a list of pairs: several equations for the same unknowns in each alternative."""
    parts = [part for part, _ in _split(text, _ALTERNATIVE)]
    if len(parts) < 2 or not all("=" in part and re.search("[,;]|and", part) for part in parts):
        return None
    solutions = []
    for part in parts:
        form = read_part(part)
        if not isinstance(form, Items) or form.opened or len(form.items) < 2:
            return None
        equations = {
            item.label: item
            for item in form.items
            if isinstance(item, Equation) and item.label is not None and is_variable(item.label)
        }
        if len(equations) != len(form.items):
            return None
        solutions.append({label: equations[label] for label in sorted(equations)})
    if len({tuple(solution) for solution in solutions}) != 1:
        return None
    return Items(tuple(Items(tuple(solution.values()), "(", ")") for solution in solutions))


def _list(text: str, read_part: _Reader) -> Form | None:
    parts = [(part, separator) for part, separator in _split(text, _SEPARATOR)]
    if len(parts) > 1:
        parts = [(part, separator) for part, separator in parts if part]
    if len(parts) < 2:
        return None
    if len(parts) > MAX_ITEMS:
        raise NotReadableError(f"more than {MAX_ITEMS} items")
    items = tuple(read_part(part) for part, _ in parts)
    if (found := conditions(items, [separator for _, separator in parts[:-1]])) is not None:
        return found
    if (classes := _congruences(items)) is not None:
        return classes
    return sum_of_units(items, text) or Items(
        _flat(items),
        are_alternatives=any(re.search("or|vee", separator) for _, separator in parts)
        or any(isinstance(item, Items) and item.are_alternatives for item in items),
    )


def _congruences(items: tuple[Form, ...]) -> Congruence | None:
    r"""Read `x \\equiv 1 \\pmod 5 or x \\equiv 4 \\pmod 5` as one congruence with two remainders."""
    first = items[0]
    if not isinstance(first, Congruence) or not first.left:
        return None
    residues: list[str] = []
    for item in items:
        if not isinstance(item, Congruence) or (item.left, item.modulus) != (first.left, first.modulus):
            return None
        residues += item.residues
    return Congruence(first.left, tuple(residues), first.modulus)


def _flat(items: tuple[Form, ...]) -> tuple[Form, ...]:
    """Replace `±2` and `x = ±2` in a list by its two values."""
    return tuple(part for item in items for part in _parts(item))


def _parts(item: Form) -> tuple[Form, ...]:
    match item:
        case Items(opened="", items=items):
            return items
        case Equation(value=Items(opened="", are_alternatives=True, items=values)):
            return tuple(replace(item, value=value) for value in values)
    return (item,)


def _relation(text: str, read_part: _Reader) -> Form | None:
    parts = list(_split(text, _RELATION))
    if len(parts) == 1 or any(not part for part, _ in parts):
        return None
    sides, signs = [part for part, _ in parts], [_SIGNS[sign] for _, sign in parts[:-1]]
    if (
        signs == ["="]
        and _PLUS_MINUS.search(text)
        and (both := _two_equations(sides, text, read_part)) is not None
    ):
        return both
    if set(signs) == {"="}:
        return Equation(sides[0], sides[-1], label_of(sides[0]), read_part(sides[-1]))
    if len(signs) == 1:
        return inequality(sides[0], signs[0], sides[1], read_part)
    return between(sides, signs, read_part) if len(signs) == 2 else Unread(text)


def _two_equations(sides: Sequence[str], text: str, read_part: _Reader) -> Form | None:
    r"""Read `2x \pm y = 0` and `y = \pm 2x` as two curves. `x = \pm 2` has two values."""
    left, right = sides
    if not _PLUS_MINUS.search(left) and not (left == "y" and re.search(r"(?<![\\a-zA-Z])x", right)):
        return None
    return _alternatives(text, read_part)


def _bracketed(text: str, read_part: _Reader) -> Form | None:
    for opened, closed in (("\\{", "\\}"), ("\\langle", "\\rangle")):
        if text.startswith(opened) and text.endswith(closed) and text.find(closed) == len(text) - len(closed):
            content = text[len(opened) : -len(closed)].strip()
            if (points := _points(content, read_part)) is not None:
                return points
            if condition := _SET_BUILDER.match(content):
                inner = read_part(content[condition.end() :].strip())
                return Union((inner,)) if is_surely_a_set(inner) else inner
            inner = _with_items(read_part(content))
            items = inner.items if isinstance(inner, Items) and not inner.opened else (inner,)
            return Items(items, "\\{", "\\}") if opened == "\\{" else Items(items, "(", ")")
    if text[:1] not in ("(", "[") or _interval_end(text, 0) != len(text) - 1:
        return None
    content = text[1:-1].strip()
    inner = _with_items(read_part(content))
    if isinstance(inner, Items) and inner.are_alternatives:
        return _points_with_signs(text, read_part) if _PLUS_MINUS.search(content) else inner
    if isinstance(inner, Items) and not inner.opened:
        return Items(inner.items, text[0], text[-1])
    return inner


def _points(content: str, read_part: _Reader) -> Form | None:
    r"""Read `(x, y) | x=1, y=2` in braces as the set of this point."""
    found = _POINTS_BUILDER.match(content)
    form = read_part(found[2].strip()) if found else None
    if found is None or not isinstance(form, Items) or form.opened:
        return None
    values = {item.label: item.value for item in form.items if isinstance(item, Equation)}
    names = re.split(r"\s*,\s*", found[1])
    if sorted(names) != sorted(filter(None, values)) or len(form.items) != len(names):
        return None
    return Items((Items(tuple(values[name] for name in names), "(", ")"),), "\\{", "\\}")


def _points_with_signs(text: str, read_part: _Reader) -> Form | None:
    """Read `(±1, 2)` as two points."""
    if len(_PLUS_MINUS.findall(text)) > 1 and r"\mp" not in text:
        raise NotReadableError("each sign of a point may be chosen by itself")
    return _alternatives(text, read_part)


def _with_items(form: Form) -> Form:
    """Return letters in brackets as a list, whose order may count."""
    return Items(tuple(map(Word, form.letters))) if isinstance(form, Letters) else form


def _alternatives(text: str, read_part: _Reader) -> Form | None:
    """Read an expression with `±` as its two values."""
    if not _PLUS_MINUS.search(text):
        return None
    both = [
        re.sub(r"\\pm(?![a-zA-Z])\s*", sign, re.sub(r"\\mp(?![a-zA-Z])\s*", opposite, text))
        for sign, opposite in ("+-", "-+")
    ]
    return Items(tuple(read_part(one.removeprefix("+")) for one in both), are_alternatives=True)


def _fixed(text: str, read_part: _Reader) -> Form | None:
    if _ARROW.search(text) and "\\lim" not in text:  # a reaction or an implication
        return Unread(text)
    return fixed_form(text)


def _word(text: str, read_part: _Reader) -> Form | None:
    return word(text)
