"""Decide whether an answer equals a reference.

Texts that are the same after cleaning are equal before anything is evaluated. Everything else is compared by its form
(`forms.py`): numbers exactly, expressions by their values at several places with many digits, lists element by element.
An answer without a finite value equals nothing but its own text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

from reward.tasks.math.cleaning import clean, without_blanks
from reward.tasks.math.exact import exact_value
from reward.tasks.math.expressions import NotReadableError, parse
from reward.tasks.math.forms import (
    Based,
    Clock,
    Date,
    Equation,
    Form,
    Inequality,
    Infinite,
    Items,
    Matrix,
    Quantity,
    Ratio,
    Union,
    Unread,
    Word,
)
from reward.tasks.math.reading import is_variable, read
from reward.tasks.math.units import Unit
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


def equal(reference: str, answer: str) -> bool:
    """Return whether an answer means the same as a reference. Depends on the two texts alone; never raises."""
    expected, found = clean(reference), clean(answer)
    if without_blanks(expected) == without_blanks(found):
        return bool(found)
    return equal_forms(read(expected), read(found))


def equal_forms(expected: Form, found: Form) -> bool:
    """Compare two forms. Where the pair has no rule in one order, it has one in the other, or none."""
    rule = _RULES.get((type(expected), type(found)))
    if rule is not None:
        return rule(expected, found)
    mirrored = _RULES.get((type(found), type(expected)))
    return mirrored is not None and mirrored(found, expected)


def _words(expected: Word, found: Word) -> bool:
    if len(expected.text) == len(found.text) == 1 and expected.text.islower() != found.text.islower():
        return False  # variables
    return expected.text.casefold() == found.text.casefold()


def _clocks(expected: Clock, found: Clock) -> bool:
    (one, one_is_known), (other, other_is_known) = map(_seconds, (expected, found))
    return one == other if one_is_known and other_is_known else one % _HALF_DAY_S == other % _HALF_DAY_S


_HALF_DAY_S = 12 * 3600


def _seconds(clock: Clock) -> tuple[int, bool]:
    """Return the seconds since midnight, and whether it is known which half of the day they are in."""
    hour, minute, second = clock.parts
    if clock.half:
        hour = hour % 12 + 12 * (clock.half == "pm")
    return hour * 3600 + minute * 60 + second, bool(clock.half) or hour > 12 or hour == 0


def _dates(expected: Date, found: Date) -> bool:
    same_year = not expected.year or not found.year or expected.year == found.year
    return same_year and (expected.month, expected.day) == (found.month, found.day)


def _ratios(expected: Ratio, found: Ratio) -> bool:
    if len(expected.terms) != len(found.terms):
        return False
    pairs = list(zip(expected.terms, found.terms, strict=True))
    return all(a * pairs[0][1] == pairs[0][0] * b for a, b in pairs) and all(
        (a == 0) == (b == 0) for a, b in pairs
    )


def _based_number(expected: Based, found: Quantity) -> bool:
    return found.unit is None and found.expression.upper().lstrip("0") == expected.digits.lstrip("0")


def _quantities(expected: Quantity, found: Quantity) -> bool:
    try:
        left, right = parse(expected.expression), parse(found.expression)
        one, other = expected.unit, found.unit
        if _is_percent(one) != _is_percent(other):
            if one is not None and other is not None:
                return False
            percent, plain = (left, right) if _is_percent(one) else (right, left)
            return same_value(percent, plain) or same_value(_times(percent, Fraction(1, 100)), plain)
        if one is None or other is None or one == other:
            return same_value(left, right)
        return one.dimension == other.dimension and same_value(
            _times(left, one.scale), _times(right, other.scale)
        )
    except (NotReadableError, NoValueError):
        return False


def _is_percent(unit: Unit | None) -> bool:
    return unit is not None and unit.dimension == ("percent", 1)


def _times(tree: Any, factor: Fraction) -> Any:
    import sympy

    return sympy.Mul(tree, sympy.Rational(factor.numerator, factor.denominator), evaluate=False)


def _minus(left: Any, right: Any) -> Any:
    import sympy

    return sympy.Add(left, sympy.Mul(-1, right, evaluate=False), evaluate=False)


def same_value(expected: Any, found: Any) -> bool:
    """Return whether two trees have the same value, for all values of their unknowns.

    Raises:
        NoValueError: if one has no finite value.
    """
    names = names_of(expected) | names_of(found)
    if not names:
        one, other = exact_value(expected), exact_value(found)
        if one is not None and other is not None:
            return one == other
        return _agree(partial(_values, expected, found, ()))
    whole = needs_whole_numbers(expected) or needs_whole_numbers(found)
    return all(_agree(partial(_values, expected, found, place)) for place in places(names, PLACES, whole))


def _values(expected: Any, found: Any, place: Place, digits: int) -> tuple[Any, Any]:
    return numeric_value(expected, place, digits), numeric_value(found, place, digits)


def _agree(values: Callable[[int], tuple[Any, Any]]) -> bool:
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


def _labeled(expected: Equation, found: Form) -> bool:
    """Compare an equation with something else: `x = 4` is 4. `x^2 = 4` and `3 = 4` are no numbers."""
    if expected.label is not None or _is_true(expected):
        return equal_forms(expected.value, found)
    return False


def _is_true(equation: Equation) -> bool:
    """Return whether both sides are the same number, as in `2 + 2 = 4`."""
    try:
        left, right = parse(equation.left), parse(equation.right)
        return not names_of(left) | names_of(right) and same_value(left, right)
    except (NotReadableError, NoValueError):
        return False


def _equations(expected: Equation, found: Equation) -> bool:
    one, other = expected.label, found.label
    if (
        one is not None
        and other is not None
        and (one == other or not (is_variable(one) and is_variable(other)))
    ):
        return equal_forms(expected.value, found.value)
    return _proportion(expected, found) is not None


def _proportion(expected: Equation | Inequality, found: Equation | Inequality) -> bool | None:
    """Return whether left − right of both sides differ by a positive factor; None if they differ by no factor."""
    try:
        one, other = (_minus(parse(each.left), parse(each.right)) for each in (expected, found))
        names = names_of(one)
        if not names or names != names_of(other):
            return None
        first, *others = places(names, PLACES)
        a, b = (numeric_value(tree, first, DIGITS[0]) for tree in (one, other))
        if a == 0 or b == 0:
            return None
        for place in others:
            if not _agree(partial(_products, one, other, first, place)):
                return None
    except (NotReadableError, NoValueError):
        return None
    ratio = a / b
    return bool(getattr(ratio, "real", ratio) > 0)


def _products(one: Any, other: Any, first: Place, place: Place, digits: int) -> tuple[Any, Any]:
    """Return the two products that are equal if the values of two trees have the same ratio at two places."""
    from mpmath import mp

    with mp.workdps(digits):
        return (
            numeric_value(one, place, digits) * numeric_value(other, first, digits),
            numeric_value(other, place, digits) * numeric_value(one, first, digits),
        )


def _inequalities(expected: Inequality, found: Inequality) -> bool:
    if expected.interval is not None and found.interval is not None:
        return expected.variable == found.variable and equal_forms(expected.interval, found.interval)
    same_direction = _proportion(expected, found)
    if same_direction is None or ("=" in expected.sign) != ("=" in found.sign):
        return False
    if "!=" in (expected.sign, found.sign):
        return expected.sign == found.sign
    return (expected.sign[0] == found.sign[0]) == same_direction


def _interval(expected: Inequality, found: Form) -> bool:
    return expected.interval is not None and equal_forms(expected.interval, found)


def _items(expected: Items, found: Items) -> bool:
    if len(expected.items) != len(found.items):
        return False
    one, other = (expected.opened, expected.closed), (found.opened, found.closed)
    if "" in (expected.opened, found.opened):
        bracketed = other if expected.opened == "" else one
        allowed = [("", ""), ("\\{", "\\}"), ("(", ")"), *([("[", "]")] if len(found.items) > 2 else [])]
        if bracketed not in allowed:
            return False
    elif one != other:
        return False
    if expected.is_ordered or found.is_ordered:
        return all(equal_forms(a, b) for a, b in zip(expected.items, found.items, strict=True))
    return _same_in_some_order(expected.items, found.items)


def _same_in_some_order(expected: Sequence[Form], found: Sequence[Form]) -> bool:
    left = list(found)
    for item in expected:
        for index, candidate in enumerate(left):
            if equal_forms(item, candidate):
                del left[index]
                break
        else:
            return False
    return not left


def _unions(expected: Union, found: Union) -> bool:
    return len(expected.parts) == len(found.parts) and _same_in_some_order(expected.parts, found.parts)


def _union_list(expected: Union, found: Items) -> bool:
    return not found.opened and _unions(expected, Union(found.items))


def _union_inequality(expected: Union, found: Inequality) -> bool:
    return found.interval is not None and equal_forms(expected, found.interval)


def _matrices(expected: Matrix, found: Matrix) -> bool:
    if [len(row) for row in expected.rows] != [len(row) for row in found.rows]:
        return False
    rows = zip(expected.rows, found.rows, strict=True)
    return all(equal_forms(a, b) for row, other in rows for a, b in zip(row, other, strict=True))


def _matrix_tuple(expected: Matrix, found: Items) -> bool:
    """A row or a column is the vector with these elements."""
    if not (len(expected.rows) == 1 or all(len(row) == 1 for row in expected.rows)):
        return False
    elements = tuple(cell for row in expected.rows for cell in row)
    return found.opened == "(" and _items(Items(elements, "(", ")"), found)


def _set_of_one(expected: Items, found: Form) -> bool:
    return expected.opened == "\\{" and len(expected.items) == 1 and equal_forms(expected.items[0], found)


def _word_expression(expected: Word, found: Quantity) -> bool:
    """Compare a single letter with an expression that may be equal to it."""
    return len(expected.text) == 1 and _quantities(Quantity(expected.text), found)


def _clock_ratio(expected: Clock, found: Ratio) -> bool:
    """Compare `4:10`, which is read as a time, with a ratio."""
    if expected.half or expected.parts[2]:
        return False
    hour, minute, _ = expected.parts
    return _ratios(Ratio((Fraction(hour), Fraction(minute))), found)


_Rule = Callable[[Any, Any], bool]
_RULES: dict[tuple[type, type], _Rule] = {
    (Word, Word): _words,
    (Word, Quantity): _word_expression,
    (Clock, Clock): _clocks,
    (Clock, Ratio): _clock_ratio,
    (Date, Date): _dates,
    (Ratio, Ratio): _ratios,
    (Based, Based): lambda expected, found: expected == found,
    (Based, Quantity): _based_number,
    (Infinite, Infinite): lambda expected, found: expected == found,
    (Quantity, Quantity): _quantities,
    (Equation, Equation): _equations,
    (Inequality, Inequality): _inequalities,
    (Items, Items): _items,
    (Items, Quantity): _set_of_one,
    (Items, Word): _set_of_one,
    (Union, Union): _unions,
    (Union, Items): _union_list,
    (Union, Inequality): _union_inequality,
    (Matrix, Matrix): _matrices,
    (Matrix, Items): _matrix_tuple,
    (Inequality, Items): _interval,
    **{
        (Equation, form): _labeled
        for form in (Word, Clock, Date, Ratio, Based, Infinite, Quantity, Items, Union, Matrix)
    },
    (Unread, Unread): lambda expected, found: (
        re.sub(r"\s", "", expected.text) == re.sub(r"\s", "", found.text)
    ),
}
"""The rule for each pair of forms. Pairs that are missing are never equal."""
