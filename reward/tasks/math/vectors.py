r"""Read matrices and determinants, and vectors in other notations: `4\mathbf{i} - \mathbf{j}`, `[1, 0]^T`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from reward.tasks.math.cleaning import without_group
from reward.tasks.math.expressions import NotReadableError
from reward.tasks.math.forms import Form, Items, Matrix, Quantity, Unread

MAX_ELEMENTS = 64
MAX_DETERMINANT = 4
"""The largest number of rows of a determinant that is computed."""

_MATRIX = re.compile(
    r"^([^&]*?)\s*\\begin\{([a-zA-Z]*matrix|array)\}(?:(?<=array\})\{[^{}]*\})?(.*)\\end\{\2\}$", re.DOTALL
)
_TRANSPOSED = re.compile(
    r"^(.+[)\]}])\s*\^\s*\{?\s*(?:\\text\s*\{\s*T\s*\}|\\?top|\\intercal|T)\s*\}?$", re.DOTALL
)
_SCALED = re.compile(r"^([a-zA-Z](?:_\{?\d\}?)?|-?\d+|-?\\frac\{\d+\}\{\d+\})\s*(?:\\cdot\s*)?([(\[].+)$")
_NEGATIVE = re.compile(r"^-\s*(\([^()]*,[^()]*\))$")
_UNIT_VECTOR = re.compile(
    r"\\(?:text|hat|vec|widehat)\s*\{?\s*(?:\\(?:text|hat|vec)\s*\{?\s*)?\\?([ijk])(?:math)?\s*\}{0,2}"
)
_POINT = re.compile(r"^([A-MO-TV-Z]'?)\s*(\(.+\))$")  # `N(0, 1)` and `U(0, 1)` are distributions
_AXES = "ijk"

_Read = Callable[[str], Form]


def matrix(text: str, read: _Read) -> Form | None:
    """Read a matrix, or a determinant as the expression that computes it."""
    if found := _TRANSPOSED.match(text):
        body = found[1].strip()
        scaled = _SCALED.match(body)
        return _transposed(_times(scaled[1], read(scaled[2])) if scaled else read(body))
    if (negative := _NEGATIVE.match(text)) and isinstance(row := read(negative[1]), Items):
        return _times("-1", row)
    found = _MATRIX.match(text)
    if not found:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\(?:\s*\[[^\[\]]*\])?", found[3]) if row.strip()]
    if sum(map(len, rows)) > MAX_ELEMENTS:
        raise NotReadableError(f"more than {MAX_ELEMENTS} elements")
    cells = [[without_group(cell.strip()) for cell in row] for row in rows]
    factor = found[1].removesuffix("\\cdot").strip()
    is_named = bool(re.fullmatch(r"\\?(?:det|text\s*\{\s*det\s*\})", factor))
    if found[2] == "vmatrix" or is_named:
        return _determinant(cells, "" if is_named else factor) or Unread(text)
    if found[2] == "Vmatrix":
        return Unread(text)
    if factor:
        cells = [[rf"({factor}) \cdot ({cell})" for cell in row] for row in cells]
    return Matrix(tuple(tuple(read(cell) for cell in row) for row in cells))


def _determinant(cells: Sequence[Sequence[str]], factor: str) -> Quantity | None:
    if not 1 <= len(cells) <= MAX_DETERMINANT or any(len(row) != len(cells) or not all(row) for row in cells):
        return None
    expansion = _expanded(cells)
    return Quantity(rf"({factor}) \cdot ({expansion})" if factor else expansion)


def _expanded(cells: Sequence[Sequence[str]]) -> str:
    """Return the expansion of a determinant along its first row."""
    if len(cells) == 1:
        return cells[0][0]
    terms = []
    for column, cell in enumerate(cells[0]):
        minor = _expanded([[*row[:column], *row[column + 1 :]] for row in cells[1:]])
        terms.append(rf"{'-' if column % 2 else '+'}({cell}) \cdot ({minor})")
    return "".join(terms).removeprefix("+")


def _times(factor: str, form: Form) -> Form:
    """Return a row with each element times a factor."""
    if not isinstance(form, Items):
        return form
    items = (
        Quantity(rf"({factor}) \cdot ({item.expression})") if isinstance(item, Quantity) else item
        for item in form.items
    )
    return replace(form, items=tuple(items))


def _transposed(form: Form) -> Form | None:
    """Return the transpose of a matrix or of a row in any brackets. Of something else it is no transpose."""
    if isinstance(form, Items) and form.opened in ("(", "["):
        return Matrix(tuple((item,) for item in form.items))
    if isinstance(form, Matrix) and len({len(row) for row in form.rows}) == 1:
        return Matrix(tuple(zip(*form.rows, strict=True)))
    return None


def coordinates(form: Form) -> tuple[Form, ...] | None:
    """Return the parts of a point or of a column."""
    match form:
        case Items(opened="(", items=items):
            return items
        case Matrix(rows=rows) if all(len(row) == 1 for row in rows):
            return tuple(row[0] for row in rows)
    return None


def point(text: str) -> tuple[str, str] | None:
    """Return the name of a point and its coordinates, in brackets, as in `P(2, 5)`."""
    found = _POINT.match(text)
    return (found[1], found[2]) if found and "," in found[2] else None


def unit_vectors(text: str, read: _Read) -> Form | None:
    r"""Read a sum of unit vectors as an expression: the last `\mathbf{k}` is no unit of measure."""
    return Quantity(text) if components(text) is not None else None


def components(expression: str) -> tuple[str, ...] | None:
    r"""Return the three components of a sum of unit vectors, or None if an expression is no such sum.

    The letters are marked as vectors (`\mathbf{i}`, `\hat{i}`), or `j` is among them: `3i` is imaginary, as is
    `3\mathrm{i}`.
    """
    marked = _UNIT_VECTOR.sub(r" \\unit\1 ", expression)
    if "\\unit" not in marked:
        if not re.search(r"(?<![a-zA-Z\\])j(?![a-zA-Z])", marked):
            return None
        marked = re.sub(r"(?<![a-zA-Z\\])([ijk])(?![a-zA-Z])", r" \\unit\1 ", marked)
    if not re.search(r"\\(?:unit[jk]|hat|vec|widehat)", marked + expression):
        return None
    found = ["0", "0", "0"]
    for term in _terms(marked):
        match = re.fullmatch(r"\s*(.*?)\s*(?:\\cdot)?\s*\\unit([ijk])\s*", term)
        if not match or "\\unit" in match[1] or found[_AXES.index(match[2])] != "0":
            return None
        found[_AXES.index(match[2])] = (
            match[1] + "1" if match[1] in ("", "+", "-") else match[1].removeprefix("+")
        )
    return tuple(found)


def is_marked_vector(expression: str) -> bool:
    r"""Return whether an expression is a sum of vectors such as `\mathbf{i}`, which is no number even if it is zero."""
    return bool(_UNIT_VECTOR.search(expression)) and components(expression) is not None


def _terms(text: str) -> list[str]:
    """Split a sum at the signs outside all brackets; each term keeps its sign."""
    terms, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and character in "+-" and text[start:position].strip(" +-"):
            terms.append(text[start:position])
            start = position
    return [*terms, text[start:]]
