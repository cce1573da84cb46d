"""Read numbers and expressions with units of measure."""

from __future__ import annotations

import re

from reward.tasks.math.forms import Form, Quantity
from reward.tasks.math.units import is_known_word, unit_of

FUNCTION = re.compile(r"sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|max|min|gcd|lcm|mod")
_NO_UNIT = re.compile(rf"{FUNCTION.pattern}|and|or|to|of|e|i")
_CURRENCY = re.compile(r"^(-?)\s*(\\\$|\$|€|£|₹|¥|Rs\.?|USD|EUR|GBP)\s*(?=[\d.\\])")
_NUMBER = (
    r"-?(?:\d+(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+|\s+\d+/\d+|\s*\\frac\s*\{\d+\}\s*\{\d+\})?(?:[eE][+-]?\d+)?"
)
_PLAIN_UNIT = re.compile(
    rf"^(?P<number>{_NUMBER}|-?\\frac\s*\{{\d+\}}\s*\{{\d+\}})(?P<gap>\s*)(?P<unit>[A-Za-z][A-Za-z ./^\d{{}}\-]*)$"
)
_TEXT_UNIT = re.compile(r"^(?P<number>.*?[\d}\)!a-zA-Z])\s*(?P<unit>\\text\s*\{[^{}]+\}.*)$")
_WITH_UNIT = r"\d+(?:\.\d+)?\s*(?:\\text\s*\{[^{}\d]+\}|[A-Za-z]+)"
_TWO_UNITS = re.compile(rf"^({_WITH_UNIT}),?\s*({_WITH_UNIT})$")
_SIGN_UNIT = re.compile(
    r"^(?P<number>.+?)\s*(?P<unit>\\?%|\^\\circ\s*(?:\\text\s*\{\s*[CF]\s*\}|[CF])?|€|£|₹|¥|¢)$"
)


def sum_of_units(items: tuple[Form, ...], text: str) -> Form | None:
    """Read `18 dollars and 50 cents` as one quantity."""
    if len(items) != 2 or not re.search(r"\band\b", text):
        return None
    large, small = items
    if (
        not isinstance(large, Quantity)
        or not isinstance(small, Quantity)
        or large.unit is None
        or small.unit is None
    ):
        return None
    if large.unit.dimension != small.unit.dimension or large.unit.scale <= small.unit.scale:
        return None
    ratio = small.unit.scale / large.unit.scale
    expression = (
        rf"({large.expression})+({small.expression}) \cdot \frac{{{ratio.numerator}}}{{{ratio.denominator}}}"
    )
    return Quantity(expression, large.unit)


def read_quantity(text: str) -> Form:
    """Read a number or an expression with its unit. The expression itself is read when it is compared."""
    if found := _CURRENCY.match(text):
        number = found[1] + text[found.end() :]
        rest = read_quantity(number)
        unit = unit_of(found[2].lstrip("\\").replace("Rs.", "rs"))
        return Quantity(rest.expression, unit) if isinstance(rest, Quantity) else rest
    if (found := _SIGN_UNIT.match(text)) and not _ends_in_function(found["number"]):
        return Quantity(found["number"], unit_of(_unit_text(found["unit"])))
    if (found := _TWO_UNITS.match(text)) and (both := _two_units(found)) is not None:
        return both
    if found := _TEXT_UNIT.match(text):
        return Quantity(found["number"], unit_of(_unit_text(found["unit"])))
    if (found := _PLAIN_UNIT.match(text)) and _is_unit(found["unit"], glued=not found["gap"]):
        return Quantity(found["number"], unit_of(_unit_text(found["unit"])))
    return Quantity(text)


def _two_units(found: re.Match[str]) -> Form | None:
    """Read `1 hour 30 minutes` as one quantity."""
    parts = tuple(read_quantity(found[number].strip()) for number in (1, 2))
    return sum_of_units(parts, "and")


def _ends_in_function(text: str) -> bool:
    r"""Return whether a sign after `text` belongs to a part of it, as in `\sin 30^\circ` and `2 + `."""
    return bool(re.search(r"(?<![a-zA-Z])(?:sin|cos|tan|cot|sec|csc)\b|[-+*/^]\s*$", text))


def _unit_text(unit: str) -> str:
    return re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", unit).replace("\\%", "%").strip()


def _is_unit(text: str, glued: bool) -> bool:
    """Return whether the words after a number are a unit or a noun, not variables or a function."""
    words = re.findall(r"[A-Za-z]+", text)
    if not words or _NO_UNIT.fullmatch(words[0].lower()) or re.search(r"(?<![\^{])\d", text):
        return False
    if glued:
        return is_known_word(words[0]) and len(words[0]) > 1
    return is_known_word(words[0]) or len(words[0]) >= 3
