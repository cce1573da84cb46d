"""Decide whether two expressions have the same value, for all values of their unknowns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from typing import Any

from reward.tasks.math.exact import exact_value
from reward.tasks.math.values import (
    NoValueError,
    Place,
    names_of,
    needs_whole_numbers,
    numeric_value,
    places,
)

PLACES = 6
"""The number of places at which expressions with unknowns are compared."""
DIGITS = (80, 160, 320)
"""The decimal digits of the computations, one after the other, until two values are seen to differ."""
NO_RENAMING: Mapping[str, str] = {}


def same_value(expected: Any, found: Any, renamed: Mapping[str, str] = NO_RENAMING) -> bool:
    """Return whether two trees have the same value, for all values of their unknowns.

    Args:
        expected: A tree.
        found: Another tree.
        renamed: The unknowns of the second tree that have other names in the first, with these names.

    Raises:
        NoValueError: if one has no finite value.
    """
    own = names_of(found)
    names = names_of(expected) | {renamed.get(name, name) for name in own}
    if not names:
        one, other = exact_value(expected), exact_value(found)
        if one is not None and other is not None:
            return one == other
        return agree(partial(both_values, expected, (), found, ()))
    whole = needs_whole_numbers(expected) or needs_whole_numbers(found)
    compared = 0
    for place in places(names, 3 * PLACES if whole else PLACES, whole):
        values = dict(place)
        other_place = (
            tuple((name, values[renamed.get(name, name)]) for name in sorted(own)) if renamed else place
        )
        try:
            if not agree(partial(both_values, expected, place, found, other_place)):
                return False
            compared += 1
        except NoValueError:
            if not whole or len(names) == 1:
                raise
    if compared < PLACES:  # `n!/(n-k)!` has no value where k is larger
        raise NoValueError("it has a value at few places only")
    return True


def both_values(expected: Any, place: Place, found: Any, other_place: Place, digits: int) -> tuple[Any, Any]:
    """Return the values of two trees, each at its own place.

    Raises:
        NoValueError: if one has no finite value there.
    """
    return numeric_value(expected, place, digits), numeric_value(found, other_place, digits)


def agree(values: Callable[[int], tuple[Any, Any]]) -> bool:
    """Return whether two numbers are equal that can be computed to any number of digits.

    A difference that keeps its size when it is computed with twice the digits is not zero. At the end the numbers must
    agree to half of the digits, so a number that only consists of rounding errors agrees with none.
    """
    from mpmath import mp

    one, other = values(DIGITS[0])
    difference = one - other
    for digits in DIGITS[1:]:
        before = difference
        one, other = values(digits)
        with mp.workdps(digits):
            difference = one - other
            if difference != 0 and abs(difference - before) * 2 <= abs(difference):
                return False
    with mp.workdps(DIGITS[-1]):
        return bool(abs(difference) <= mp.mpf(10) ** (-DIGITS[-1] // 2) * max(1, abs(one), abs(other)))


def times(tree: Any, factor: Fraction, pi: int = 0) -> Any:
    """Return the tree of a product with a fraction and a power of π, which nothing has evaluated."""
    import sympy

    factors = [tree, sympy.Rational(factor.numerator, factor.denominator)]
    if pi:
        factors.append(sympy.Pow(sympy.pi, pi, evaluate=False))
    return sympy.Mul(*factors, evaluate=False)


def plus(tree: Any, number: Fraction) -> Any:
    """Return the tree of a sum with a fraction, which nothing has evaluated."""
    import sympy

    return sympy.Add(tree, sympy.Rational(number.numerator, number.denominator), evaluate=False)


def minus(left: Any, right: Any) -> Any:
    """Return the tree of a difference, which nothing has evaluated."""
    import sympy

    return sympy.Add(left, sympy.Mul(-1, right, evaluate=False), evaluate=False)
