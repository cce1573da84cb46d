"""Compare the two sides of equations and inequalities up to a factor: `2x = 4y` is `x = 2y`."""

from __future__ import annotations

from functools import partial
from typing import Any

from reward.tasks.math.agreement import DIGITS, PLACES, agree, minus
from reward.tasks.math.expressions import NotReadableError, parse
from reward.tasks.math.forms import Equation, Inequality
from reward.tasks.math.values import NoValueError, Place, names_of, numeric_value, places


def proportion(expected: Equation | Inequality, found: Equation | Inequality) -> bool | None:
    """Return whether left − right of both sides differ by a positive factor; None if they differ by no factor."""
    try:
        one, other = (minus(parse(each.left), parse(each.right)) for each in (expected, found))
        names = names_of(one)
        if not names or names != names_of(other):
            return None
        first, *others = places(names, PLACES)
        a, b = (numeric_value(tree, first, DIGITS[0]) for tree in (one, other))
        if a == 0 or b == 0:
            return None
        for place in others:
            if not agree(partial(_products, one, other, first, place)):
                return None
    except (NotReadableError, NoValueError):
        return None
    ratio = a / b
    return bool(getattr(ratio, "real", ratio) > 0)


def same_inequalities(expected: Inequality, found: Inequality) -> bool:
    """Return whether two inequalities differ by a factor, whose sign turns the relation around."""
    same_direction = proportion(expected, found)
    if same_direction is None or ("=" in expected.sign) != ("=" in found.sign):
        return False
    if "!=" in (expected.sign, found.sign):
        return expected.sign == found.sign
    return (expected.sign[0] == found.sign[0]) == same_direction


def _products(one: Any, other: Any, first: Place, place: Place, digits: int) -> tuple[Any, Any]:
    """Return the two products that are equal if the values of two trees have the same ratio at two places."""
    from mpmath import mp

    with mp.workdps(digits):
        return (
            numeric_value(one, place, digits) * numeric_value(other, first, digits),
            numeric_value(other, place, digits) * numeric_value(one, first, digits),
        )
