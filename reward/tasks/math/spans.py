r"""Compare answers that are linear in arbitrary constants: general solutions, lines, spaces of vectors.

`C_1 e^x + C_2 e^{-x}` and `A\cosh x + B\sinh x` are the same functions in other words. An answer that is linear in
its constants is a starting function plus a space of functions, so two of them are the same if the spaces are, and the
difference of the starting functions is in the space. Functions are compared by their values at several places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from reward.tasks.math.agreement import DIGITS
from reward.tasks.math.values import Place, names_of, numeric_value, places

_MORE_PLACES = 3
"""The number of places beyond the number of constants."""
_TOLERANCE = -DIGITS[0]

_Column = list[Any]
"""The values of one function at all places, for all parts of the answer."""


class Parts:
    """The trees of an answer (one, or the coordinates of a vector), and the names of its constants."""

    def __init__(self, trees: Sequence[Any], constants: frozenset[str], renamed: Mapping[str, str]) -> None:
        self.trees = trees
        self.constants = sorted(constants)
        self.renamed = renamed
        """The unknowns that have other names in the other answer, with these names."""

    def values(self, unknowns: Mapping[str, Fraction], constants: Mapping[str, int]) -> _Column:
        """Return the values of all trees at one place.

        Raises:
            NoValueError: if one has no finite value there.
        """
        found = []
        for tree in self.trees:
            place: Place = tuple(
                (
                    name,
                    Fraction(constants[name])
                    if name in constants
                    else unknowns[self.renamed.get(name, name)],
                )
                for name in sorted(names_of(tree))
            )
            found.append(numeric_value(tree, place, DIGITS[-1]))
        return found


def same_spans(expected: Parts, found: Parts, unknowns: frozenset[str]) -> bool | None:
    """Return whether two answers take the same values when their constants take all values.

    The result is None if one of them is not linear in its constants, so that it is for others to decide.

    Raises:
        NoValueError: if one has no finite value at a place.
    """
    from mpmath import mp

    count = len(expected.constants) + len(found.constants) + _MORE_PLACES
    with mp.workdps(DIGITS[-1]):
        own, other = (
            _columns(each, places(unknowns, count) if unknowns else [()]) for each in (expected, found)
        )
        if own is None or other is None:
            return None
        (start, space), (other_start, other_space) = own, other
        difference = [a - b for a, b in zip(start, other_start, strict=True)]
        rank = _rank(space)
        return rank == _rank(other_space) == _rank([*space, *other_space, difference])


def _columns(parts: Parts, at: Sequence[Place]) -> tuple[_Column, list[_Column]] | None:
    """Return the values with all constants 0, and what each constant adds to them; None if that is not linear."""
    from mpmath import mp

    nothing = dict.fromkeys(parts.constants, 0)

    def column(constants: Mapping[str, int]) -> _Column:
        return [value for place in at for value in parts.values(dict(place), constants)]

    start = column(nothing)
    space = [
        [a - b for a, b in zip(column({**nothing, name: 1}), start, strict=True)] for name in parts.constants
    ]
    for factor in (2, -3):
        test = {name: factor + index for index, name in enumerate(parts.constants)}
        expected = [
            begin
            + mp.fsum(test[name] * added[row] for name, added in zip(parts.constants, space, strict=True))
            for row, begin in enumerate(start)
        ]
        if not all(map(_is_same, expected, column(test))):
            return None
    return start, space


def _is_same(one: Any, other: Any) -> bool:
    from mpmath import mp

    return bool(abs(one - other) <= mp.mpf(10) ** _TOLERANCE * max(1, abs(one), abs(other)))


def _rank(columns: Sequence[_Column]) -> int:
    """Return the number of columns that are independent, by elimination with the largest pivot of each row."""
    from mpmath import mp

    left, rank = [list(column) for column in columns], 0
    for row in range(len(left[0]) if left else 0):
        pivot = max(left, key=lambda column: abs(column[row]), default=None)
        scale = max((abs(value) for column in left for value in column), default=mp.zero)
        if pivot is None or abs(pivot[row]) <= mp.mpf(10) ** _TOLERANCE * max(1, scale):
            continue
        left.remove(pivot)
        rank += 1
        left = [
            [value - column[row] / pivot[row] * other for value, other in zip(column, pivot, strict=True)]
            for column in left
        ]
    return rank
