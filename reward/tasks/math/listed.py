"""Read what stands for a list: `(1, 2) and its permutations`, `all odd integers`, the whole numbers of an interval."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

from reward.tasks.math.forms import Equation, Family, Form, Inequality, Items, Quantity

_WORDS = re.compile(
    r"^(?:the\s+)?(?:all\s+)?(?:(?P<sign>positive|non-?negative|natural)\s+)?(?P<kind>odd|even)\s+"
    r"(?:(?P<after>positive|non-?negative|natural)\s+)?(?:integers|numbers|whole numbers)(?:\s+[a-z])?$",
    re.IGNORECASE,
)
_SQUARES = re.compile(r"^(?:all\s+)?(positive\s+)?perfect squares(\s+[a-z]\s*\\ge\s*1)?$", re.IGNORECASE)
_PERMUTED = re.compile(
    r"^(?P<body>.+?)[,;]?\s*(?:\(?\s*(?:in (?:any|some) order|up to (?:order|permutations?))\)?"
    r"|(?:and|or|with|plus)\s+(?:(?:all|any|their|its|the|of)\s+)*(?P<cyclic>cyclic\s+)?permutations?(?:\s+thereof)?)$"
)
_MAX_PERMUTED = 4
_BOUNDED = re.compile(r"^(?P<name>[a-z])\s*\\in\s*\\mathbb\s*\{?(?P<set>[ZN])\}?\s*[|:,](?P<condition>.+)$")
_MAX_LISTED = 64


def whole_numbers(plain: str, read: Callable[[str], Form]) -> Items | None:
    r"""Return `n \in \mathbb{Z} : -2 \le n \le 2` as the set of these numbers."""
    found = _BOUNDED.match(plain)
    form = read(found["condition"].strip()) if found else None
    if found is None or not isinstance(form, Inequality) or form.variable != found["name"]:
        return None
    ends = form.interval.items if isinstance(form.interval, Items) else ()
    texts = [
        end.expression
        for end in ends
        if isinstance(end, Quantity) and re.fullmatch(r"-?\d{1,6}", end.expression)
    ]
    if len(texts) != 2 or not isinstance(form.interval, Items):
        return None
    low = int(texts[0]) + (form.interval.opened == "(")
    high = int(texts[1]) - (form.interval.closed == ")")
    if high - low >= _MAX_LISTED or (found["set"] == "N" and low < 1):
        return None
    return Items(tuple(Quantity(str(number)) for number in range(low, high + 1)), "\\{", "\\}")


def numbers_in_words(plain: str) -> Family | None:
    """Return `all odd positive integers` and `all perfect squares` as families."""
    if squares := _SQUARES.match(plain):
        return Family(None, "n", ("n^2",), frozenset({1} if squares[1] or squares[2] else {0, 1}))
    words = _WORDS.match(plain)
    if not words:
        return None
    signs = {sign for sign in (words["sign"], words["after"]) if sign}
    if len(signs) > 1:
        return None
    sign = min(signs, default="")
    if words["kind"] == "odd":
        return Family(None, "n", ("2n+1",), frozenset({0} if sign else ()))
    if sign == "natural":
        return None  # zero may be one of them
    return Family(None, "n", ("2n",), frozenset({1} if sign == "positive" else {0} if sign else ()))


def permutations(plain: str, read: Callable[[str], Form]) -> Form | None:
    """Return `(1,2,3) and its permutations` as the list of them."""
    found = _PERMUTED.match(plain)
    form = read(found["body"].strip()) if found else None
    points = form.value if isinstance(form, Equation) and form.label is not None else form
    if found is None or not isinstance(points, Items) or points.opened not in ("", "("):
        return None
    listed = points.items if points.opened == "" else (points,)
    every: list[Form] = []
    for point in listed:
        if not isinstance(point, Items) or point.opened != "(" or not 1 < len(point.items) <= _MAX_PERMUTED:
            return None
        orders = list(itertools.permutations(point.items))
        if found["cyclic"]:
            orders = [point.items[start:] + point.items[:start] for start in range(len(point.items))]
        every += [Items(order, "(", ")") for order in dict.fromkeys(orders)]
    every = list(dict.fromkeys(every))
    return Items(tuple(every)) if len(every) > 1 else every[0]
