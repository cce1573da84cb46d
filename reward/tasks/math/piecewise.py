r"""Read and compare functions that are given by cases: `\begin{cases} x & x \ge 0 \\ -x & x < 0 \end{cases}`.

The conditions are sets of real numbers. Two functions are the same if they have the same value at each end of a set
and at several places between two ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from typing import Any

from reward.tasks.math.agreement import DIGITS, NO_RENAMING, agree, both_values
from reward.tasks.math.expressions import NotReadableError, parse
from reward.tasks.math.forms import (
    Branch,
    Conditions,
    Equation,
    Form,
    Inequality,
    Items,
    Piecewise,
    Quantity,
    Union,
    Word,
)
from reward.tasks.math.parity import cases_in_words, parity, parity_variable, same_by_parity
from reward.tasks.math.real_sets import EMPTY, REALS, NoSetError, RealSet, merged, real_set, set_variable
from reward.tasks.math.values import NoValueError, Place, names_of, numeric_value, places
from reward.tasks.math.words import unwrapped

MAX_BRANCHES = 12

_CASES = re.compile(r"^\\begin\s*\{cases\}(.*)\\end\s*\{cases\}$", re.DOTALL)
_BEFORE = r"\\text\s*\{\s*,?\s*(?:if|for|when|where|otherwise|else|elsewhere)\b"
_CONDITION = re.compile(
    rf"^(?P<value>[^&]+?)\s*,?\s*(?:&\s*,?\s*|(?={_BEFORE})|(?<=,)\s*(?=[^,]*[<>]|[^,]*\\(?:le|ge|ne)\b))(?P<condition>[^&]+)$"
)
_WORD_BEFORE = re.compile(r"^[,\s]*(?:if|for|when|where|with)\b\s*")
_OTHERWISE = re.compile(r"^[,\s]*(?:otherwise|else|elsewhere|in all other cases)$")
_FRACTIONS = (Fraction(2, 19), Fraction(5, 13), Fraction(11, 17), Fraction(22, 23))
_DISTANCES = (Fraction(3, 11), Fraction(19, 13), Fraction(87, 17), Fraction(401, 19))

_Cell = tuple[Fraction, ...]
"""Places at which two functions are compared: one end, or several numbers between two ends."""


def piecewise(text: str, read: Callable[[str], Form]) -> Piecewise | None:
    """Read a function by its cases. A system of equations has no conditions, so it is none."""
    found = _CASES.match(text)
    if not found:
        return cases_in_words(unwrapped(text))
    rows = [row.strip() for row in re.split(r"\\\\(?:\s*\[[^\]]*\])?", found[1]) if row.strip(" ,;")]
    if not 1 < len(rows) <= MAX_BRANCHES:
        raise NotReadableError(f"{len(rows)} cases")
    return Piecewise(tuple(_branch(row, read) for row in rows))


def _branch(row: str, read: Callable[[str], Form]) -> Branch:
    found = _CONDITION.match(row.strip(" ,;."))
    if not found:
        raise NotReadableError("a case without a condition")
    condition = unwrapped(found["condition"]).strip(" ,;.")
    value = found["value"].strip(" ,;")
    if _OTHERWISE.match(condition):
        return Branch(value, None)
    condition = _WORD_BEFORE.sub("", condition)
    if (odd_or_even := parity(condition)) is not None:
        return Branch(value, odd_or_even)
    form = read(re.sub(r"\bis\s+", "", condition))
    return Branch(value, Conditions((form,), "or") if isinstance(form, Equation) else form)


def same_functions(expected: Piecewise, found: Form, renamed: Mapping[str, str] = NO_RENAMING) -> bool | None:
    """Return whether two functions are the same, or None if a condition is no set of real numbers.

    The second one may be an expression with the unknown of the conditions, such as `|x|`. `renamed` has the names in
    the first function of the unknowns of the second one.
    """
    variable = _variable(expected)
    try:
        if parity_variable(expected) or parity_variable(found):
            return not renamed and same_by_parity(expected, found)
        one = _sets(expected)
        if isinstance(found, Piecewise):
            other, other_variable = _sets(found), _variable(found)
            trees = [parse(branch.value) for branch in found.branches]
        elif isinstance(found, Quantity) and found.unit is None:
            other, other_variable, trees = [REALS], variable, [parse(found.expression)]
            if variable not in names_of(trees[0]):
                return False
        else:
            return False
        if one is None or other is None or variable is None or other_variable is None:
            return None
        if renamed.get(other_variable, other_variable) != variable:
            return False
        if renamed and any(variable in names_of(tree) for tree in trees):
            return False
        return _agree_everywhere(
            ([parse(branch.value) for branch in expected.branches], one, variable),
            (trees, other, other_variable),
            renamed,
        )
    except (NotReadableError, NoSetError, NoValueError):
        return False


def _variable(form: Piecewise) -> str | None:
    conditions = [branch.condition for branch in form.branches if branch.condition is not None]
    names = {name for condition in conditions if (name := set_variable(condition)) is not None}
    return min(names) if len(names) == 1 else None


def _sets(form: Piecewise) -> list[RealSet] | None:
    """Return the numbers for which each branch is taken, or None if a condition is no set."""
    taken, sets = EMPTY, []
    for branch in form.branches:
        condition = REALS if branch.condition is None else real_set(branch.condition)
        if condition is None or (
            branch.condition is not None
            and not isinstance(branch.condition, (Inequality, Conditions, Union, Items))
        ):
            return None
        sets.append(condition.without(taken))
        taken = taken.union(condition)
    return sets


_Function = tuple[list[Any], list[RealSet], str]
"""The trees of the values, the sets where they are taken, and the unknown."""


def _agree_everywhere(expected: _Function, found: _Function, renamed: Mapping[str, str]) -> bool:
    grid = REALS
    for each in (*expected[1], *found[1]):
        grid = grid.combined(each, lambda one, two: True)
    taken = [[_memberships(each, grid) for each in function[1]] for function in (expected, found)]
    for index, cell in enumerate(_cells(grid)):
        one, other = (next((tree for tree, row in zip(function[0], rows, strict=True) if row[index]), None)
                      for function, rows in zip((expected, found), taken, strict=True))  # fmt: skip
        if (one is None) != (other is None):
            return False
        if one is not None and not _agree_at(cell, (one, expected[2]), (other, found[2]), renamed):
            return False
    return True


def _memberships(each: RealSet, grid: RealSet) -> list[bool]:
    """Return for each gap and each cut of a grid whether it is in a set, all of whose cuts are cuts of the grid."""
    found = [each.inside[0]]
    for _, own, _ in merged(each, grid):
        found += [each.inside[own[0]], each.inside[own[1]]]
    return found


def _cells(grid: RealSet) -> Iterator[_Cell]:
    """Yield places in each gap and at each cut, from left to right."""
    ends = [_near(cut) for cut in grid.cuts]
    if not ends:
        yield (*_DISTANCES, *(-distance for distance in _DISTANCES))
        return
    yield tuple(ends[0] - distance for distance in _DISTANCES)
    for index, end in enumerate(ends):
        yield (end,)
        if index + 1 < len(ends):
            yield tuple(end + (ends[index + 1] - end) * part for part in _FRACTIONS)
        else:
            yield tuple(end + distance for distance in _DISTANCES)


def _near(cut: Any) -> Fraction:
    """Return a cut, or a fraction that is equal to it in all digits that are computed."""
    if cut.exact is not None:
        return Fraction(cut.exact)
    from mpmath import mp

    with mp.workdps(2 * DIGITS[-1]):
        value = mp.re(numeric_value(cut.tree, (), 2 * DIGITS[-1]))
        return Fraction(int(mp.nint(value * mp.mpf(10) ** (DIGITS[-1] + 80))), 10 ** (DIGITS[-1] + 80))


def _agree_at(
    cell: _Cell, expected: tuple[Any, str], found: tuple[Any, str], renamed: Mapping[str, str]
) -> bool:
    (tree, variable), (other, other_variable) = expected, found
    own, others = names_of(tree) - {variable}, names_of(other) - {other_variable}
    (rest,) = places(own | {renamed.get(name, name) for name in others}, 1)
    values = dict(rest)
    for number in cell:
        place: Place = tuple(sorted((*((name, values[name]) for name in own), (variable, number))))
        other_place: Place = tuple(
            sorted((*((name, values[renamed.get(name, name)]) for name in others), (other_variable, number)))
        )
        if not agree(partial(both_values, tree, place, other, other_place)):
            return False
    return True


def same_branches(expected: Piecewise, found: Piecewise, equal: Callable[[Form, Form], bool]) -> bool:
    """Return whether two functions have the same values under the same conditions, in some order."""
    left = list(found.branches)
    for branch in expected.branches:
        match = next((other for other in left if _same_branch(branch, other, equal)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def _same_branch(expected: Branch, found: Branch, equal: Callable[[Form, Form], bool]) -> bool:
    one, other = (
        Word("otherwise") if each.condition is None else each.condition for each in (expected, found)
    )
    return equal(one, other) and equal(Quantity(expected.value), Quantity(found.value))
