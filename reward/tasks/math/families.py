r"""Compare families with a whole number as their parameter: as unions of residue classes.

`x = \frac{\pi}{4} + k\pi` for all whole k is the residue class of π/4 modulo π. Congruences are classes too. Two
unions of classes are the same if they have the same residues modulo a common period.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from reward.tasks.math.agreement import DIGITS, NO_RENAMING, same_value
from reward.tasks.math.exact import exact_value
from reward.tasks.math.expressions import NotReadableError, parse
from reward.tasks.math.forms import Congruence, Equation, Family, Form, Quantity
from reward.tasks.math.labels import is_variable
from reward.tasks.math.sequences import same_sequences
from reward.tasks.math.unit_names import DEGREE
from reward.tasks.math.values import NoValueError, names_of, numeric_value

MAX_CLASSES = 1000
"""The largest number of residues modulo the common period."""
MAX_RATIO = 1000
"""The largest numerator and denominator of the ratio of two periods."""
PARAMETERS = frozenset("klmnjpq")
"""The letters that stand for a whole number where a family does not say so."""
_TESTED = (2, 3, 7, -5, -11)
"""The values of the parameter at which an expression must be on the line through its values at 0 and 1."""
_NEAR = 10**30
"""The number of parts of a period; residues that are the same are in one part, or in two that are side by side."""
_TOLERANCE = -DIGITS[-1] // 2

_Class = tuple[Any, Any]
"""A residue and a positive period, as real numbers of mpmath."""


class _NoClassesError(ValueError):
    """A family is no union of residue classes of real numbers."""


def same_families(expected: Form, found: Form) -> bool:
    """Return whether two forms describe the same numbers. At least one of them says what its parameter is.

    Where a reference does not, as `2n+1`, it may be a formula, for which `2n-1` with n ∈ ℤ is incorrect.
    """
    for one, two in ((expected, found), (found, expected)):
        if isinstance(one, Congruence) and one.left and not is_variable(one.left):
            is_class = isinstance(two, Congruence) and not two.left and _same_residues(one, two)
            return is_class and _is_statement(one)
    variables = {_variable(form) for form in (expected, found)} - {None}
    if len(variables) > 1:
        return False
    if isinstance(expected, Family) and expected.least:
        return same_sequences(expected, found if isinstance(found, Family) else _unstated(found, expected))
    if isinstance(expected, Family) and isinstance(found, Family) and found.least:
        return False
    is_said = isinstance(expected, (Family, Congruence)) or _is_periodic(expected)
    if not is_said and not (isinstance(expected, Equation) and isinstance(found, Congruence)):
        return _is_formula_of(expected, found)
    try:
        classes, others = _classes(expected), _classes(found)
        return bool(classes and others) and _same_classes(classes, others)
    except (_NoClassesError, NoValueError, NotReadableError):
        return _same_expressions(expected, found)


def _is_periodic(form: Form) -> bool:
    """Return whether a reference is a family although it does not say what its letter stands for: one of angles."""
    value = form.value if isinstance(form, Equation) else form
    return isinstance(value, Quantity) and bool(re.search(r"\\pi(?![a-zA-Z])|\^\\circ", value.expression))


def _unstated(found: Form, expected: Family) -> Family:
    """Return an answer that does not say what its letter stands for as a family with the numbers of the reference."""
    value = found.value if isinstance(found, Equation) else found
    if not isinstance(value, Quantity) or value.unit is not None:
        return Family(None, "", ())
    try:
        names = names_of(parse(value.expression)) & (PARAMETERS | {expected.parameter})
    except (NotReadableError, NoValueError):
        return Family(None, "", ())
    name = expected.parameter if expected.parameter in names else min(names, default="")
    return Family(None, name, (value.expression,), expected.least)


def is_residue(expected: Form, found: Congruence) -> bool:
    r"""Return whether a number is the one that is written in `3 \pmod 7` or in `10 \equiv 3 \pmod 7`."""
    if not isinstance(expected, Quantity) or expected.unit is not None or len(found.residues) != 1:
        return False
    try:
        residue = parse(found.residues[0])
        if found.left and not _is_statement(found):
            return False
        return not names_of(residue) and same_value(parse(expected.expression), residue)
    except (NotReadableError, NoValueError):
        return False


def _is_statement(form: Congruence) -> bool:
    r"""Return whether a congruence is a true statement on a number, as `10 \equiv 3 \pmod 7` is."""
    try:
        left, right = exact_value(parse(form.left)), exact_value(parse(form.residues[0]))
    except (NotReadableError, NoValueError):
        return False
    return (
        left is not None
        and right is not None
        and len(form.residues) == 1
        and (left - right) % form.modulus == 0
    )


def _same_residues(expected: Congruence, found: Congruence) -> bool:
    try:
        return _same_classes(_classes(expected), _classes(found))
    except (_NoClassesError, NoValueError, NotReadableError):
        return False


def _is_formula_of(expected: Form, found: Form) -> bool:
    """Compare a reference that is one expression with a family of one expression."""
    value = expected.value if isinstance(expected, Equation) else expected
    if not isinstance(found, Family) or len(found.expressions) != 1 or not isinstance(value, Quantity):
        return False
    try:
        tree = parse(value.expression)
        return found.parameter in names_of(tree) and same_value(tree, parse(found.expressions[0]))
    except (NotReadableError, NoValueError):
        return False


def _variable(form: Form) -> str | None:
    match form:
        case Family(variable=variable):
            return variable
        case Congruence(left=left):
            return left or None
        case Equation(label=label):
            return label
    return None


def _classes(form: Form) -> list[_Class]:
    from mpmath import mp

    with mp.workdps(DIGITS[-1]):
        match form:
            case Congruence(residues=residues, modulus=modulus):
                return [(_whole(residue), mp.mpf(modulus)) for residue in residues]
            case Family(expressions=expressions, parameter=parameter):
                trees = [parse(expression) for expression in expressions]
                if any(names_of(tree) != {parameter} for tree in trees):
                    raise _NoClassesError("a member with other unknowns, or without the parameter")
                return [each for tree in trees for each in _lines(tree, parameter)]
            case Equation(label=str() as label, value=Quantity() as value) if re.fullmatch(
                r"\\?[a-zA-Z]+", label
            ):
                return _classes(value)
            case Quantity(unit=unit, expression=expression) if unit in (None, DEGREE):
                tree = parse(expression if unit is None else rf"{expression}^\circ ")
                names = names_of(tree)
                if len(names) != 1 or not names <= PARAMETERS:
                    raise _NoClassesError("no parameter")
                return _lines(tree, min(names))
    raise _NoClassesError("no family")


def _whole(residue: str) -> Any:
    from mpmath import mp

    value = exact_value(parse(residue)) if not names_of(parse(residue)) else None
    if value is None or value.denominator != 1:
        raise _NoClassesError("a remainder that is no whole number")
    return mp.mpf(value.numerator)


def _lines(tree: Any, parameter: str) -> list[_Class]:
    r"""Return the classes of an expression: one, or two where those of even and odd parameters differ, as in
    `(-1)^k\frac{\pi}{6} + k\pi`."""
    line = _line(tree, parameter, 1, 0)
    if line is not None:
        return [line]
    lines = [_line(tree, parameter, 2, start) for start in (0, 1)]
    if None in lines:
        raise _NoClassesError("no line")
    return [line for line in lines if line is not None]


def _line(tree: Any, parameter: str, step: int, start: int) -> _Class | None:
    """Return the class of the values at `start`, `start + step`, … if they are on a line that is not level."""
    from mpmath import mp

    def at(index: int) -> Any:
        value = numeric_value(tree, ((parameter, Fraction(start + step * index)),), DIGITS[-1])
        if mp.im(value) != 0:
            raise _NoClassesError("complex values")
        return mp.re(value)

    first, period = at(0), at(1) - at(0)
    if _is_zero(period) or any(not _is_zero(first + index * period - at(index)) for index in _TESTED):
        return None
    return first, abs(period)


def _is_zero(value: Any) -> bool:
    from mpmath import mp

    return bool(abs(value) < mp.mpf(10) ** _TOLERANCE)


def _same_classes(expected: Sequence[_Class], found: Sequence[_Class]) -> bool:
    """Compare the residues of two unions of classes modulo a common period."""
    from mpmath import mp

    with mp.workdps(DIGITS[-1]):
        unit = expected[0][1]
        ratios = [_ratio(period, unit) for _, period in (*expected, *found)]
        common = Fraction(
            math.lcm(*(each.numerator for each in ratios)), math.gcd(*(each.denominator for each in ratios))
        )
        period = unit * common.numerator / common.denominator
        residues = []
        for classes, steps in ((expected, ratios[: len(expected)]), (found, ratios[len(expected) :])):
            counts = [int(common / step) for step in steps]
            if sum(counts) > MAX_CLASSES:
                raise _NoClassesError("too many residues")
            residues.append(
                [
                    first + each * index
                    for (first, each), count in zip(classes, counts, strict=True)
                    for index in range(count)
                ]
            )
        return _are_among(residues[0], residues[1], period) and _are_among(residues[1], residues[0], period)


def _ratio(period: Any, unit: Any) -> Fraction:
    """Return the ratio of two periods.

    Raises:
        _NoClassesError: if it is no fraction of small numbers, so that the families have no common period.
    """
    from mpmath import mp

    ratio = period / unit
    exact = Fraction(int(mp.nint(ratio * 10**40)), 10**40).limit_denominator(MAX_RATIO)
    if not 0 < exact.numerator <= MAX_RATIO or not _is_zero(ratio * exact.denominator - exact.numerator):
        raise _NoClassesError("no common period")
    return exact


def _are_among(residues: Sequence[Any], others: Sequence[Any], period: Any) -> bool:
    """Return whether each residue is one of others modulo a period. Others near it are found by its first digits."""
    from mpmath import mp

    def digits(residue: Any) -> int:
        part = residue / period
        return (
            int(mp.floor((part - mp.floor(part)) * _NEAR)) % _NEAR
        )  # a difference just below 1 is rounded to 1

    near: dict[int, list[Any]] = {}
    for other in others:
        near.setdefault(digits(other), []).append(other)
    return all(
        any(
            _is_multiple(residue - other, period)
            for step in (-1, 0, 1)
            for other in near.get((digits(residue) + step) % _NEAR, ())
        )
        for residue in residues
    )


def _is_multiple(value: Any, period: Any) -> bool:
    from mpmath import mp

    count = value / period
    return _is_zero(count - mp.nint(count))


def _same_expressions(expected: Form, found: Form) -> bool:
    """Compare families that are no residue classes by their expressions, with one parameter renamed to the other."""
    if not (isinstance(expected, Family) and isinstance(found, Family)):
        return False
    if len(expected.expressions) != len(found.expressions):
        return False
    renamed = {found.parameter: expected.parameter} if found.parameter != expected.parameter else NO_RENAMING
    left = list(found.expressions)
    try:
        for expression in expected.expressions:
            tree = parse(expression)
            if expected.parameter not in names_of(tree):
                return False
            match = next(
                (other for other in left if _is_renamed(tree, parse(other), renamed, expected.parameter)),
                None,
            )
            if match is None:
                return False
            left.remove(match)
    except (NotReadableError, NoValueError):
        return False
    return True


def _is_renamed(expected: Any, found: Any, renamed: Any, parameter: str) -> bool:
    names = names_of(found)
    return not (renamed and parameter in names) and same_value(expected, found, renamed)
