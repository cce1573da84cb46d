"""Compare numbers and expressions with their units of measure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from reward.tasks.math.agreement import NO_RENAMING, plus, same_value, times
from reward.tasks.math.cleaning import without_blanks
from reward.tasks.math.constants import same_antiderivatives
from reward.tasks.math.exact import exact_value
from reward.tasks.math.expressions import NotReadableError, parse, with_braces
from reward.tasks.math.forms import Quantity
from reward.tasks.math.series import same_terms
from reward.tasks.math.unit_names import Dimension, Unit
from reward.tasks.math.values import NoValueError, names_of
from reward.tasks.math.words import unwrapped

_ANGLE = (("angle", 1),)
_PERCENT = (("percent", 1),)
_KELVIN: Mapping[Dimension, tuple[Fraction, Fraction]] = {
    (("temperature", 1),): (Fraction(1), Fraction(0)),
    (("temperature c", 1),): (Fraction(1), Fraction(27315, 100)),
    (("temperature f", 1),): (Fraction(5, 9), Fraction(45967, 180)),
}
"""The factor of a degree, and the temperature in kelvins of zero degrees."""
_PI = re.compile(r"\\pi(?![a-zA-Z])")
_NATURAL = re.compile(r"(?<![a-zA-Z])\\?ln(?![a-zA-Z])")
_ANY_LOGARITHM = re.compile(r"(?<![a-zA-Z])\\?log(?![a-zA-Z])(?!\s*_)")


def same_quantities(expected: Quantity, found: Quantity, renamed: Mapping[str, str] = NO_RENAMING) -> bool:
    """Return whether two quantities are equal. `renamed` has the names in the first of the unknowns of the second."""
    if not renamed and expected.unit == found.unit and _as_written(expected) == _as_written(found):
        return True
    try:
        left, right = parse(expected.expression), parse(found.expression)
        one, other = expected.unit, found.unit
        if _is_percent(one) != _is_percent(other):
            if one is not None and other is not None:
                return False
            percent, plain = (left, right) if _is_percent(one) else (right, left)
            return same_value(percent, plain) or same_value(times(percent, Fraction(1, 100)), plain)
        if one is not None and other is not None:
            if one.dimension != other.dimension and {one.dimension, other.dimension} <= _KELVIN.keys():
                return same_value(_in_kelvin(left, one), _in_kelvin(right, other))
            return one.dimension == other.dimension and _same_sizes(left, one, right, other)
        if _is_in_degrees(one, left) and _PI.search(found.expression):
            return _same_sizes(left, one, right, Unit(_ANGLE, Fraction(1)))
        if _is_in_degrees(other, right) and _PI.search(expected.expression):
            return _same_sizes(left, Unit(_ANGLE, Fraction(1)), right, other)
        if _same_expressions(left, right, renamed):
            return True
        logarithms = _natural(expected.expression, found.expression)
        return logarithms is not None and _same_expressions(
            parse(logarithms[0]), parse(logarithms[1]), renamed
        )
    except (NotReadableError, NoValueError):
        return False


def _as_written(quantity: Quantity) -> str:
    """Return an expression that nothing reads without blanks and with all braces, so that `O(n^2)` is `O(n^{2})`."""
    return as_written(quantity.expression)


def as_written(text: str) -> str:
    """Return a text without blanks and with all braces. The index of its one sum has a name of its own."""
    text = re.sub(r"(?<=\d)\s+(?=[A-Za-z])", "", unwrapped(text))
    indices = re.findall(r"\\(?:sum|prod)\s*_\s*\{?\s*([a-z])\s*=", text)
    if len(indices) == 1:
        text = re.sub(rf"(?<![\\a-zA-Z]){indices[0]}(?![a-zA-Z])", r"\\iota ", text)
    try:
        return without_blanks(with_braces(text))
    except NotReadableError:
        return text


def _natural(expected: str, found: str) -> tuple[str, str] | None:
    r"""Return two expressions with `\ln` for each `\log` if one has only the first and the other only the second.

    `\log` alone has base 10 in school and base e in analysis; beside a natural logarithm it is one.
    """
    kinds = [(bool(_NATURAL.search(text)), bool(_ANY_LOGARITHM.search(text))) for text in (expected, found)]
    if kinds not in ([(True, False), (False, True)], [(False, True), (True, False)]):
        return None
    return _ANY_LOGARITHM.sub(r"\\ln ", expected), _ANY_LOGARITHM.sub(r"\\ln ", found)


def _is_percent(unit: Unit | None) -> bool:
    return unit is not None and unit.dimension == _PERCENT


def _is_in_degrees(unit: Unit | None, tree: Any) -> bool:
    """Return whether a quantity is a rational number of degrees, so that an angle with π can only be in radians."""
    is_degree = unit is not None and unit.dimension == _ANGLE and unit.pi == 1
    return is_degree and not names_of(tree) and exact_value(tree) is not None


def _same_sizes(left: Any, one: Unit | None, right: Any, other: Unit | None) -> bool:
    """Return whether two trees with units of the same dimension are equal."""
    if one is None or other is None or one == other:
        return same_value(left, right)
    ratio, pi = one.scale / other.scale, one.pi - other.pi
    return same_value(times(left, ratio, max(pi, 0)), times(right, Fraction(1), max(-pi, 0)))


def _in_kelvin(tree: Any, unit: Unit) -> Any:
    factor, zero = _KELVIN[unit.dimension]
    return plus(times(tree, factor * unit.scale), zero)


def _same_expressions(left: Any, right: Any, renamed: Mapping[str, str]) -> bool:
    if _is_summed(left) and _is_summed(right) and not renamed and same_terms(left, right):
        return True
    try:
        if same_value(left, right, renamed):
            return True
    except NoValueError:
        return False
    return not renamed and same_antiderivatives(left, right)


def _is_summed(tree: Any) -> bool:
    import sympy

    return any(isinstance(part, (sympy.Sum, sympy.Product)) for part in (tree, *tree.args))
