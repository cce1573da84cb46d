"""Compare answers with arbitrary constants: antiderivatives, and solutions of differential and functional equations."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

from reward.tasks.math.agreement import DIGITS, PLACES, agree, same_value
from reward.tasks.math.expressions import NotReadableError, parse
from reward.tasks.math.forms import Declared, Equation, Form, Quantity
from reward.tasks.math.labels import function_and_argument
from reward.tasks.math.spans import Parts, same_spans
from reward.tasks.math.values import NoValueError, Place, is_like_zero, names_of, numeric_value, places
from reward.tasks.math.vectors import coordinates

_ADDITIVE = ("C", "c", "K", "k")
"""The names of a constant of integration. At least one of two answers must use the first."""
_USUAL = re.compile(r"^[abckmABCDKM](?:_\{?\d\}?)?$")
"""The names of constants that need not be declared if those of the other answer are."""
_UNDECLARED = re.compile(r"^(?:C|[Cc]_\{?\d\}?)$")
"""The names of constants in a solution that need not be declared at all."""
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
    return _same(_parts(expected), _parts(found))


def same_general_solutions(expected: Equation, found: Equation) -> bool:
    """Compare functions whose reference has a constant that it need not declare: `C`, or `c_1` and `c_2`."""
    one, other = _parts(expected), _parts(found)
    if one is None or other is None:
        return False
    implicit = frozenset(name for name in one.names if _UNDECLARED.match(name))
    return bool(implicit) and _same(replace(one, declared=implicit), other)


@dataclass(frozen=True)
class _Answer:
    """The trees of an answer, its unknowns and constants, and the argument of the function that it is."""

    trees: tuple[Any, ...]
    names: frozenset[str]
    declared: frozenset[str]
    argument: str | None
    is_nonzero: bool


def _parts(form: Form) -> _Answer | None:
    """Return what an answer consists of: one expression, or the coordinates of a vector."""
    declared: frozenset[str] = frozenset()
    is_nonzero, argument = False, None
    if isinstance(form, Declared):
        declared, is_nonzero = frozenset(form.constants), form.is_nonzero
        form = form.value
    if isinstance(form, Equation) and form.label is not None:
        function = function_and_argument(form.label)
        argument = function[1] if function else None
        form = form.value
    parts = coordinates(form) or (form,)
    try:
        trees = tuple(
            parse(part.expression) for part in parts if isinstance(part, Quantity) and part.unit is None
        )
        names = frozenset(name for tree in trees for name in names_of(tree))
    except (NotReadableError, NoValueError):
        return None
    return _Answer(trees, names, declared, argument, is_nonzero) if len(trees) == len(parts) else None


def _same(expected: _Answer | None, found: _Answer | None) -> bool:
    if expected is None or found is None or len(expected.trees) != len(found.trees):
        return False
    if expected.is_nonzero != found.is_nonzero:
        return False
    renamed = (
        {found.argument: expected.argument}
        if expected.argument and found.argument and expected.argument != found.argument
        else {}
    )
    one, other = expected.names - expected.declared, found.names - found.declared
    other_names = frozenset(renamed.get(name, name) for name in other)
    if not expected.declared:
        own, one = one - other_names, one & other_names
        others = found.declared & found.names
    elif not found.declared:
        own = expected.declared & expected.names
        others = frozenset(name for name in other if renamed.get(name, name) not in one)
        other_names -= {renamed.get(name, name) for name in others}
    else:
        own, others = expected.declared & expected.names, found.declared & found.names
    if one != other_names or not own or not others or len(own | others) > 2 * _MAX_CONSTANTS:
        return False
    allowed = all(_is_constant(name, expected.declared) for name in own) and all(
        _is_constant(name, found.declared) for name in others
    )
    try:
        return allowed and _same_for_all(expected.trees, own, found.trees, others, one, renamed)
    except NoValueError:
        return False


def _same_for_all(
    trees: Sequence[Any],
    own: frozenset[str],
    other_trees: Sequence[Any],
    others: frozenset[str],
    unknowns: frozenset[str],
    renamed: Mapping[str, str],
) -> bool:
    """Compare two answers with all values of their constants: by spans, or else with the constants renamed."""
    try:
        same = same_spans(Parts(trees, own, {}), Parts(other_trees, others, renamed), unknowns)
    except NoValueError:
        same = None
    if same is not None or len(own) != len(others):
        return bool(same)
    return any(
        _same_renamed(
            trees, other_trees, unknowns, dict(zip(sorted(others), order, strict=True)), signs, renamed
        )
        for order in itertools.permutations(sorted(own))
        for signs in itertools.product((1, -1), repeat=len(own))
    )


def _same_renamed(
    trees: Sequence[Any],
    other_trees: Sequence[Any],
    unknowns: frozenset[str],
    constants: Mapping[str, str],
    signs: Sequence[int],
    renamed: Mapping[str, str],
) -> bool:
    """Compare two answers with the constants of the second one named, or the negatives of those, as in the first."""
    sign_of = dict(zip(sorted(constants), signs, strict=True))

    def both(a: Any, b: Any, place: Place, digits: int) -> tuple[Any, Any]:
        values = dict(place)
        other_place = tuple(
            (
                name,
                sign_of[name] * values[constants[name]]
                if name in constants
                else values[renamed.get(name, name)],
            )
            for name in sorted(names_of(b))
        )
        return numeric_value(a, place, digits), numeric_value(b, other_place, digits)

    return all(
        agree(partial(both, a, b, place))
        for a, b in zip(trees, other_trees, strict=True)
        for place in places(unknowns | frozenset(constants.values()), PLACES)
    )


def _is_constant(name: str, declared: frozenset[str]) -> bool:
    return name in declared or bool(_USUAL.match(name))
