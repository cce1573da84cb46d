"""Compare answers with arbitrary constants: antiderivatives, and solutions of differential and functional equations."""

from __future__ import annotations

import itertools
import re
from fractions import Fraction
from functools import partial
from typing import Any

from reward.tasks.math.agreement import DIGITS, agree, same_value
from reward.tasks.math.expressions import NotReadableError, parse
from reward.tasks.math.forms import Declared, Equation, Form, Quantity
from reward.tasks.math.values import NoValueError, Place, is_like_zero, names_of, numeric_value, places

_ADDITIVE = ("C", "c", "K", "k")
"""The names of a constant of integration. At least one of two answers must use the first."""
_USUAL = re.compile(r"^[abckmABCDKM](?:_\{?\d\}?)?$")
"""The names of constants that need not be declared if those of the other answer are."""
_INTEGRATED = frozenset((*"xtuyzsrvw", "theta", "phi"))
"""The unknowns of antiderivatives."""
_GEOMETRIC = frozenset(("A", "B", "b"))
"""Names beside which `C` is an angle, a point or a coefficient."""
_PLACES = 10
_MAX_CONSTANTS = 3


def same_antiderivatives(expected: Any, found: Any) -> bool:
    """Return whether two trees are functions of one unknown plus an arbitrary constant, and differ by a constant.

    `F + C` and `F + c` are the same also if `F` has more unknowns.

    Raises:
        NoValueError: if one has no value at a place.
    """
    one, other = _additive(expected), _additive(found)
    if one is None or other is None or _ADDITIVE[0] not in (one, other):
        return False
    unknowns = (names_of(expected) - {one}, names_of(found) - {other})
    if not unknowns[0] & _INTEGRATED or unknowns[0] != unknowns[1] or unknowns[0] & {*_GEOMETRIC, *_ADDITIVE}:
        return False
    if same_value(expected, found, {other: one} if one != other else {}):
        return True
    return len(unknowns[0]) == 1 and _differ_by_a_constant(expected, one, found, other, min(unknowns[0]))


def _additive(tree: Any) -> str | None:
    """Return the name of the constant that is one of the terms of a sum, and occurs nowhere else."""
    import sympy

    if not isinstance(tree, sympy.Add):
        return None
    terms = _terms(tree)
    for name in _ADDITIVE:
        symbols = [term for term in terms if isinstance(term, sympy.Symbol) and term.name == name]
        if len(symbols) == 1 and not any(name in names_of(term) for term in terms if term is not symbols[0]):
            return name
    return None


def _terms(tree: Any) -> list[Any]:
    import sympy

    return [term for part in tree.args for term in _terms(part)] if isinstance(tree, sympy.Add) else [tree]


def _differ_by_a_constant(expected: Any, one: str, found: Any, other: str, unknown: str) -> bool:
    """Return whether the difference of two trees without their constants is a real constant, and they are not level."""
    from mpmath import mp

    zero = Fraction(0)

    def values(place: Place, digits: int) -> tuple[Any, Any]:
        left, right = (*place, (one, zero)), (*place, (other, zero))
        return numeric_value(expected, left, digits), numeric_value(found, right, digits)

    def differences(place: Place, digits: int) -> tuple[Any, Any]:
        with mp.workdps(digits):
            (a, b), (first_a, first_b) = values(place, digits), values(first, digits)
            return a - b, first_a - first_b

    first, *others = places(frozenset((unknown,)), _PLACES)
    with mp.workdps(DIGITS[0]):
        start, other_start = values(first, DIGITS[0])
        is_level = all(is_like_zero(mp, values(place, DIGITS[0])[0] - start) for place in others)
        if is_level or not is_like_zero(mp, mp.im(start - other_start)):
            return False
    return all(agree(partial(differences, place)) for place in others)


def same_with_constants(expected: Form, found: Form) -> bool:
    """Compare two answers of which at least one declares its constants. Their other unknowns are the same."""
    one, declared = _unpacked(expected)
    other, also_declared = _unpacked(found)
    if one is None or other is None:
        return False
    try:
        left, right = parse(one.expression), parse(other.expression)
        names, other_names = names_of(left), names_of(right)
        if names == other_names:
            return same_value(left, right)
        own, others = sorted(names - other_names), sorted(other_names - names)
        if len(own) != len(others) or len(own) > _MAX_CONSTANTS:
            return False
        allowed = all(_is_constant(name, declared) for name in own) and all(
            _is_constant(name, also_declared) for name in others
        )
        if not allowed or not (set(own) <= declared or set(others) <= also_declared):
            return False
        return any(
            same_value(left, right, dict(zip(others, names_in_order, strict=True)))
            for names_in_order in itertools.permutations(own)
        )
    except (NotReadableError, NoValueError):
        return False


def _is_constant(name: str, declared: frozenset[str]) -> bool:
    return name in declared or bool(_USUAL.match(name))


def _unpacked(form: Form) -> tuple[Quantity | None, frozenset[str]]:
    """Return the expression of an answer, and the constants that it declares."""
    declared: frozenset[str] = frozenset()
    if isinstance(form, Declared):
        declared = frozenset(form.constants)
        form = form.value
    if isinstance(form, Equation) and form.label is not None:
        form = form.value
    return (form if isinstance(form, Quantity) and form.unit is None else None), declared
