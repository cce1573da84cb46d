"""Compare families that begin with a least whole number, and families of points and of intervals."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Any

from reward.tasks.math.agreement import DIGITS, NO_RENAMING, agree, both_values, same_value
from reward.tasks.math.expressions import NotReadableError, parse
from reward.tasks.math.forms import Family, Items, Quantity, TupleFamily
from reward.tasks.math.values import NoValueError, is_like_zero, names_of, numeric_value, places

_COMPARED = (0, 1, 2, 3, 5, 8)
"""The members that are compared, counted from the first one."""
_Member = tuple[str, str, Sequence[Any]]
"""The brackets of a point or an interval, and the trees of its parts."""


def same_sequences(expected: Family, found: Family) -> bool:
    """Return whether two families of which at least one has a least number have the same members in the same order."""
    return _same(_members(expected), expected, _members(found), found)


def same_tuples(expected: TupleFamily, found: TupleFamily) -> bool:
    """Return whether two families have the same points or intervals."""
    return _same(_members(expected), expected, _members(found), found)


def _members(family: Family | TupleFamily) -> list[_Member]:
    """Return the members with their trees, none if one is not readable."""
    parts = (
        family.members
        if isinstance(family, TupleFamily)
        else [Items((Quantity(each),)) for each in family.expressions]
    )
    try:
        return [
            (
                part.opened,
                part.closed,
                [parse(item.expression) for item in part.items if isinstance(item, Quantity)],
            )
            for part in parts
        ]
    except NotReadableError:
        return []


def _same(
    expected: list[_Member], one: Family | TupleFamily, found: list[_Member], other: Family | TupleFamily
) -> bool:
    if not expected or len(expected) != len(found) or bool(one.least) != bool(other.least):
        return False
    left = list(found)
    for opened, closed, trees in expected:
        for member in left:
            if (
                member[:2] == (opened, closed)
                and len(member[2]) == len(trees)
                and _is_same(trees, one, member[2], other)
            ):
                left.remove(member)
                break
        else:
            return False
    return True


def _is_same(
    trees: Sequence[Any], one: Family | TupleFamily, others: Sequence[Any], other: Family | TupleFamily
) -> bool:
    try:
        if one.least:
            return any(
                _same_terms(trees, (one.parameter, start), others, (other.parameter, begin))
                for start in one.least
                for begin in other.least
            )
        lines = [_line(tree, one.parameter) for tree in trees]
        other_lines = [_line(tree, other.parameter) for tree in others]
        if None not in lines and None not in other_lines:
            return _same_lines([line for line in lines if line], [line for line in other_lines if line])
        renamed = {other.parameter: one.parameter} if other.parameter != one.parameter else NO_RENAMING
        return all(same_value(a, b, renamed) for a, b in zip(trees, others, strict=True))
    except NoValueError:
        return False


def _same_terms(
    trees: Sequence[Any], first: tuple[str, int], others: Sequence[Any], other_first: tuple[str, int]
) -> bool:
    """Compare members one after the other, each from the least number of its own letter on."""
    for a, b in zip(trees, others, strict=True):
        names = names_of(a) - {first[0]}
        if names != names_of(b) - {other_first[0]}:
            return False
        for step, place in zip(
            _COMPARED, places(names, len(_COMPARED)) if names else [()] * len(_COMPARED), strict=True
        ):
            one, other = (
                tuple(sorted((*place, (name, Fraction(start + step)))))
                for name, start in (first, other_first)
            )
            if not agree(partial(both_values, a, one, b, other)):
                return False
    return True


def _line(tree: Any, parameter: str) -> tuple[Any, Any] | None:
    """Return the real value at 0 and the step of an expression that grows evenly with its one letter, or None."""
    from mpmath import mp

    if names_of(tree) - {parameter}:
        return None
    with mp.workdps(DIGITS[-1]):
        start, *values = (
            numeric_value(tree, ((parameter, Fraction(number)),) if names_of(tree) else (), DIGITS[-1])
            for number in (0, 1, 2, 3, 7, -5)
        )
        step = values[0] - start
        is_line = mp.im(start) == 0 and all(
            is_like_zero(mp, value - start - number * step)
            for number, value in zip((2, 3, 7, -5), values[1:], strict=True)
        )
        return (mp.re(start), mp.re(step)) if is_line else None


def _same_lines(lines: list[tuple[Any, Any]], others: list[tuple[Any, Any]]) -> bool:
    """Return whether the second lines are the first ones, passed in either direction and from another start."""
    from mpmath import mp

    with mp.workdps(DIGITS[-1]):
        moving = [index for index, (_, step) in enumerate(lines) if not is_like_zero(mp, step)]
        if not moving:
            return False
        index = moving[0]
        shift = mp.nint((others[index][0] - lines[index][0]) / lines[index][1])
        return any(
            all(
                is_like_zero(mp, start + shift * step - other_start)
                and is_like_zero(mp, direction * step - other_step)
                for (start, step), (other_start, other_step) in zip(lines, others, strict=True)
            )
            for direction in (1, -1)
        )
