"""The value of an expression as an exact fraction, where it is rational."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from reward.tasks.math.values import UNCOMPUTABLE, NoValueError, value_or_raise

MAX_EXACT_BITS = 20_000
"""The longest numerator or denominator of an exact value."""

_Operation = Callable[[list[Fraction]], Fraction]


class _NotExactError(Exception):
    """A value is not rational, or a fraction that is too long."""


def exact_value(tree: Any) -> Fraction | None:
    """Return the value of a tree without unknowns if it is rational, else None.

    Raises:
        NoValueError: if it is infinite or undefined.
    """
    value: Fraction | None = value_or_raise(_exact_or_error(tree))
    return value


@lru_cache(maxsize=4096)
def _exact_or_error(tree: Any) -> Fraction | NoValueError | None:
    try:
        return _exact(tree)
    except NoValueError as error:
        return error
    except (_NotExactError, *UNCOMPUTABLE):
        return None


def _exact(tree: Any) -> Fraction:
    import sympy

    if isinstance(tree, sympy.Rational):
        if tree.q == 0:
            raise NoValueError("a division by zero")
        return Fraction(int(tree.p), int(tree.q))
    if isinstance(tree, sympy.UnevaluatedExpr):
        return _exact(tree.args[0])
    name = type(tree).__name__
    if isinstance(tree, sympy.Pow):
        return _exact_power(_exact(tree.base), _exact(tree.exp))
    if name not in _EXACT:
        raise _NotExactError
    return _bounded(_EXACT[name]([_exact(argument) for argument in tree.args]))


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_EXACT_BITS:
        raise _NotExactError
    return value


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise _NotExactError
    power = exponent.numerator
    if base == 0 and power <= 0:
        raise NoValueError("0 to the power of 0, or a division by zero")
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if base not in (0, 1, -1) and size * abs(power) > MAX_EXACT_BITS:
        raise _NotExactError
    return base ** (power if base not in (1, -1) else power % 2 or 2)


def _factorial(values: list[Fraction]) -> Fraction:
    (value,) = values
    if value < 0:
        raise NoValueError("the factorial of a negative number")
    if value.denominator != 1 or value > 1000:
        raise _NotExactError
    return Fraction(math.factorial(value.numerator))


def _binomial(values: list[Fraction]) -> Fraction:
    top, bottom = values
    if top.denominator != 1 or bottom.denominator != 1 or not 0 <= top <= 1000 or bottom < 0:
        raise _NotExactError
    return Fraction(math.comb(top.numerator, bottom.numerator))


def _remainder(values: list[Fraction]) -> Fraction:
    if values[1] == 0:
        raise NoValueError("a remainder of a division by zero")
    return values[0] % values[1]


_EXACT: Mapping[str, _Operation] = {
    "Add": lambda values: sum(values, Fraction(0)),
    "Mul": lambda values: math.prod(values, start=Fraction(1)),
    "Abs": lambda values: abs(values[0]),
    "floor": lambda values: Fraction(math.floor(values[0])),
    "ceiling": lambda values: Fraction(math.ceil(values[0])),
    "Max": max,
    "Min": min,
    "factorial": _factorial,
    "binomial": _binomial,
    "Mod": _remainder,
}
