r"""Read inequalities and other conditions on one unknown as sets of numbers.

`x > 3`, `1 < x \le 2`, `|x| < 1`, `x \ne 2, 3` and `all real numbers except 2` are sets. `2x < 6` is none, since it is
not solved.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from reward.tasks.math.forms import (
    Conditions,
    Equation,
    Excluding,
    Form,
    Inequality,
    Infinite,
    Items,
    Quantity,
    Sign,
    Union,
    Unread,
)
from reward.tasks.math.labels import is_variable
from reward.tasks.math.real_sets import set_variable
from reward.tasks.math.words import unwrapped

MIRRORED: dict[Sign, Sign] = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "="}

_SIZE = re.compile(r"^\|\s*([^|]+?)\s*\|$")
_REALS = r"(?:\\mathbb\s*\{?R\}?|all\s+(?:the\s+)?real(?:s|\s+numbers|\s+values)?(?:\s+(?:of\s+)?[a-z])?)"
_EXCEPT = re.compile(
    rf"^{_REALS}\s*(?:\\(?:setminus|backslash)(?![a-zA-Z])|-(?=\s*\\\{{)"
    r"|(?:,\s*)?(?:except|other than|but not)(?:\s+for)?)\s*(.+)$"
)
_SUCH_THAT = re.compile(rf"^{_REALS}\s*(?:such that|with|where|for which)\s+(.+)$")
_INTERVAL = re.compile(r"^([\[\](])\s*([^\[\]]+?)\s*([\[\])])$")

_Read = Callable[[str], Form]


def inequality(left: str, sign: Sign, right: str, read: _Read) -> Form:
    r"""Read `x > 3` and `|x| \ge 2`. Where neither side is an unknown, the form has no set."""
    if (is_variable(right) or _SIZE.match(right)) and not (is_variable(left) or _SIZE.match(left)):
        left, sign, right = right, MIRRORED[sign], left
    if is_variable(left):
        return Inequality(left, sign, right, left, _half_line(sign, read(right)))
    size = _SIZE.match(left)
    if size and is_variable(size[1]) and sign != "!=":
        return Inequality(left, sign, right, size[1], _by_size(sign, read(right)))
    return Inequality(left, sign, right)


def _half_line(sign: Sign, bound: Form) -> Form:
    low, high = Infinite(False), Infinite(True)
    if sign == "!=":
        return Union((Items((low, bound), "(", ")"), Items((bound, high), "(", ")")))
    if sign[0] == ">":
        return Items((bound, high), "[" if sign == ">=" else "(", ")")
    return Items((low, bound), "(", "]" if sign == "<=" else ")")


def _by_size(sign: Sign, bound: Form) -> Form | None:
    """Return the numbers whose absolute value is below or above a bound, which may be negative."""
    if not isinstance(bound, Quantity) or bound.unit is not None:
        return None
    opposite = Quantity(f"-({bound.expression})")
    if sign[0] == "<":
        ends = ("[", "]") if sign == "<=" else ("(", ")")
        return Items((opposite, bound), *ends)
    return Union((_half_line("<=" if sign == ">=" else "<", opposite), _half_line(sign, bound)))


def between(sides: Sequence[str], signs: Sequence[Sign], read: _Read) -> Form:
    """Read `1 < x ≤ 2` and `2 ≥ x > 1`, and `1 < |x| < 2`."""
    middle = sides[1]
    size = _SIZE.match(middle)
    if signs[0][0] != signs[1][0] or signs[0][0] not in "<>" or not (
        is_variable(middle) or (size and is_variable(size[1]))
    ):  # fmt: skip
        return Unread(" ".join(sides))
    if signs[0][0] == ">":
        sides, signs = sides[::-1], [MIRRORED[sign] for sign in reversed(signs)]
    if size:
        parts = (
            inequality(middle, MIRRORED[signs[0]], sides[0], read),
            inequality(middle, signs[1], sides[2], read),
        )
        if any(not isinstance(part, Inequality) or part.interval is None for part in parts):
            return Unread(" ".join(sides))
        return Conditions(parts, "and")
    opened, closed = "[" if signs[0] == "<=" else "(", "]" if signs[1] == "<=" else ")"
    return Inequality(
        sides[0], signs[0], sides[2], middle, Items((read(sides[0]), read(sides[2])), opened, closed)
    )


def conditions(items: Sequence[Form], separators: Sequence[str]) -> Conditions | None:
    r"""Read the items of a list as conditions on one unknown: `x < 1 or x > 3`, `x > 0, x \ne 1`, `x \ne 2, 3`."""
    first = items[0]
    if isinstance(first, Inequality) and first.sign == "!=" and first.variable is not None:
        items = [
            Inequality(first.left, "!=", item.expression, first.variable, _half_line("!=", item))
            if isinstance(item, Quantity) and item.unit is None
            else item
            for item in items
        ]
    if not any(isinstance(item, (Inequality, Conditions)) for item in items) or not all(
        map(_is_condition, items)
    ):
        return None
    names = {name for item in items if (name := _variable(item)) is not None}
    if len(names) != 1:
        return None
    joined = {
        "or" if "or" in each or "vee" in each else "and" if re.search("and|wedge", each) else ","
        for each in separators
    }
    if {"or", "and"} <= joined:
        return None
    return Conditions(tuple(items), "or" if "or" in joined else "and" if "and" in joined else ",")


def _is_condition(form: Form) -> bool:
    match form:
        case Inequality(interval=interval):
            return interval is not None
        case Conditions() | Excluding() | Union():
            return True
        case Equation(label=label, value=Quantity(unit=None)):
            return label is not None and is_variable(label)
        case Items(items=(Infinite(), Infinite()), opened="("):
            return True
    return False


def _variable(form: Form) -> str | None:
    return form.label if isinstance(form, Equation) else set_variable(form)


def excluding(text: str, read: _Read) -> Form | None:
    r"""Read `\mathbb{R}\setminus\{2\}`, `all real numbers except 2 and 3`, and `all real numbers such that x > 1`."""
    plain = unwrapped(text)
    if found := _EXCEPT.match(plain):
        without = read(re.sub(r"^[a-z]\s*=\s*", "", found[1].strip()))
        if isinstance(without, Quantity):
            without = Items((without,), "\\{", "\\}")
        if isinstance(without, Items) and without.opened == "":
            without = Items(without.items, "\\{", "\\}")
        return Excluding(Items((Infinite(False), Infinite(True)), "(", ")"), without)
    if (found := _SUCH_THAT.match(plain)) and isinstance(
        condition := read(found[1]), (Inequality, Conditions)
    ):
        return condition
    return None


def french_interval(text: str, read: _Read) -> Form | None:
    """Read `]2,7[` and `[2,7[`, which have an outward bracket at an open end."""
    texts = re.split(r"\s*\\cup(?![a-zA-Z])\s*", text)
    parts = list(map(_INTERVAL.match, texts))
    if not any(part and (part[1] == "]" or part[3] == "[") for part in parts):
        return None
    sets: list[Form] = []
    for each, part in zip(texts, parts, strict=True):
        inner = read(part[2] if part else each)
        if not isinstance(inner, Items) or (part and (inner.opened or len(inner.items) != 2)):
            return None
        if part:
            inner = Items(inner.items, "[" if part[1] == "[" else "(", "]" if part[3] == "]" else ")")
        elif inner.opened != "\\{":
            return None
        sets.append(inner)
    return Union(tuple(sets))
