"""Read numbers and expressions with units of measure."""

from __future__ import annotations

import re

from reward.tasks.math.forms import Form, Quantity
from reward.tasks.math.units import is_known_word, unit_of

FUNCTION = re.compile(r"sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|max|min|gcd|lcm|mod")
_NO_NOUN = re.compile(
    r"(?:half|halve|third|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|(?:thir|four|fif|six|seven|eigh|nine)teen"
    r"|(?:twent|thirt|fort|fift|sixt|sevent|eight|ninet)ie|hundred|thousand|million|billion)th)s?"
    r"|point|plus|minus|over|choose|factorial|squared|cubed|hundred|and|or|to|of|is|not"
)
"""Words after a number that change its value."""
_NO_UNIT = re.compile(rf"(?!min$)(?:{FUNCTION.pattern}|{_NO_NOUN.pattern}|e|i)")
"""Minutes are no function, because no brackets follow."""
_CURRENCY = re.compile(r"^(-?)\s*(\\\$|\$|€|£|₹|¥|Rs\.?|USD|EUR|GBP)\s*(?=[\d.\\])")
_NUMBER = (
    r"-?(?:\d+(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+|\s+\d+/\d+|\s*\\frac\s*\{\d+\}\s*\{\d+\})?(?:[eE][+-]?\d+)?"
)
_PLAIN_UNIT = re.compile(
    rf"^(?P<number>{_NUMBER}|-?\\frac\s*\{{\d+\}}\s*\{{\d+\}})(?P<gap>\s*)(?P<unit>[A-Za-z][A-Za-z ./^\d{{}}()\-]*)$"
)
_MICRO_UNIT = re.compile(rf"^(?P<number>{_NUMBER})\s+(?P<unit>\\mu [a-zA-Z]{{1,2}})$")
_PLAIN_RADIANS = re.compile(r"^(?P<number>[^a-z]*\\pi(?![a-zA-Z])[^a-z]*?)\s*(?P<unit>rad|radians?)$")
_POWER = r"\^\s*(?:\{\s*-?\d+\s*\}|-?\d+)"
_IN_TEXT = rf"\\text\s*\{{(?:[^{{}}^]|{_POWER})+\}}"
_TEXT_UNIT = re.compile(
    rf"^(?P<number>.*?[\d}})!a-zA-Z])\s*(?P<unit>(?:\\mu\s*)?{_IN_TEXT}(?:{_IN_TEXT}|{_POWER}|[^{{}}^+=<>\\\d-]|\\(?!text))*)$"
)
_FRACTION_UNIT = re.compile(
    rf"^(?P<number>.*?[\d}})!a-zA-Z])\s*\[?\s*(?P<unit>\\frac\s*\{{\s*{_IN_TEXT}\s*\}}\s*\{{\s*{_IN_TEXT}(?:{_POWER})?\s*\}})\s*\]?$"
)
_WITH_UNIT = r"\d+(?:\.\d+)?\s*(?:\\text\s*\{[^{}\d]+\}|[A-Za-z]+)"
_TWO_UNITS = re.compile(rf"^({_WITH_UNIT}),?\s*({_WITH_UNIT})$")
_SIGN_UNIT = re.compile(
    r"^(?P<number>.+?)\s*(?P<unit>\\?%|\^\\circ\s*(?:\\text\s*\{\s*[CF]\s*\}|[CF])?|€|£|₹|¥|¢)$"
)
_LETTER_UNITS = frozenset("mgshlLNJWKV")
"""The units of one letter that may follow a number without \\text: any other letter is an unknown."""


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
    if (large.unit.dimension, large.unit.pi) != (small.unit.dimension, small.unit.pi):
        return None
    if large.unit.scale <= small.unit.scale:
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
    for pattern in (_FRACTION_UNIT, _TEXT_UNIT, _MICRO_UNIT, _PLAIN_RADIANS):
        if (found := pattern.match(text)) and not _NO_NOUN.fullmatch(_first_word(found["unit"])):
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
    return unit.replace("\\%", "%").strip()


def _first_word(unit: str) -> str:
    words = re.findall(r"(?<![\\a-zA-Z])[A-Za-z]+", unit.replace("\\text", " "))
    return words[0].lower() if words else ""


def _is_unit(text: str, glued: bool) -> bool:
    """Return whether the words after a number are a unit or a noun, not variables or a function."""
    words = re.findall(r"[A-Za-z]+", text)
    if not words or _NO_UNIT.fullmatch(words[0].lower()) or re.search(r"(?<![\^{\-])\d", text):
        return False
    if glued:
        return is_known_word(words[0]) and (len(words[0]) > 1 or words[0] == "L")
    return is_noun(words[0])


def is_noun(word: str) -> bool:
    """Return whether a word after a number and a blank is a unit or a noun that changes nothing."""
    if _NO_UNIT.fullmatch(word.lower()):
        return False
    return word in _LETTER_UNITS or len(word) >= 3 or (len(word) == 2 and is_known_word(word))
