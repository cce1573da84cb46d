"""Sets of real numbers: unions of intervals and points, with ends that are known numbers.

A set has cuts, sorted, and says for each cut and for each gap between two cuts whether it belongs to the set. All
notations of a set become such a set, and two of them are the same if no cut and no gap is in one of them only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

from reward.tasks.math.agreement import DIGITS, same_value
from reward.tasks.math.exact import exact_value
from reward.tasks.math.expressions import NotReadableError, parse
from reward.tasks.math.forms import (
    Conditions,
    Equation,
    Excluding,
    Form,
    Inequality,
    Infinite,
    Items,
    Quantity,
    Union,
)
from reward.tasks.math.values import NoValueError, is_like_zero, names_of, numeric_value

MAX_CUTS = 40
"""The largest number of cuts of a set."""


class NoSetError(ValueError):
    """A form is no set of real numbers, or one whose ends are not known numbers."""


@dataclass(frozen=True)
class Cut:
    """A real number where a set may begin or end."""

    tree: Any

    @cached_property
    def exact(self) -> Fraction | None:
        return exact_value(self.tree)

    @cached_property
    def value(self) -> Any:
        """The number to 80 digits, or more where it is rational."""
        from mpmath import mp

        number = numeric_value(self.tree, (), DIGITS[0])
        with mp.workdps(DIGITS[0]):
            if not is_like_zero(mp, mp.im(number)):
                raise NoSetError("an end is no real number")
            return mp.re(number)

    def compare(self, other: Cut) -> int:
        """Return -1, 0 or 1 if this number is less than, equal to, or greater than the other one."""
        if self.exact is not None and other.exact is not None:
            return (self.exact > other.exact) - (self.exact < other.exact)
        if same_value(self.tree, other.tree):
            return 0
        if self.value == other.value:
            raise NoSetError("two ends cannot be told apart")
        return 1 if self.value > other.value else -1


@dataclass(frozen=True)
class RealSet:
    """A set of real numbers. `inside` has a value for the gap below the first cut, the first cut, the next gap, …"""

    cuts: tuple[Cut, ...]
    inside: tuple[bool, ...]

    @property
    def is_empty(self) -> bool:
        return not any(self.inside)

    def combined(self, other: RealSet, operation: Callable[[bool, bool], bool]) -> RealSet:
        """Return the set with the numbers for which an operation on the two memberships is true."""
        cuts: list[Cut] = []
        inside: list[bool] = [operation(self.inside[0], other.inside[0])]
        for cut, one, two in merged(self, other):
            cuts.append(cut)
            inside += [operation(self.inside[one[0]], other.inside[two[0]])]
            inside += [operation(self.inside[one[1]], other.inside[two[1]])]
        if len(cuts) > MAX_CUTS:
            raise NoSetError("too many ends")
        return RealSet(tuple(cuts), tuple(inside))

    def union(self, other: RealSet) -> RealSet:
        return self.combined(other, lambda one, two: one or two)

    def intersection(self, other: RealSet) -> RealSet:
        return self.combined(other, lambda one, two: one and two)

    def without(self, other: RealSet) -> RealSet:
        return self.combined(other, lambda one, two: one and not two)

    def is_same(self, other: RealSet) -> bool:
        """Return whether two sets have the same elements, as far as their ends can be compared."""
        try:
            return self.combined(other, lambda one, two: one != two).is_empty
        except (NoSetError, NoValueError):
            return False


EMPTY = RealSet((), (False,))
REALS = RealSet((), (True,))


def merged(one: RealSet, other: RealSet) -> Iterator[tuple[Cut, tuple[int, int], tuple[int, int]]]:
    """Yield the cuts of two sets in order. Each comes with the index in `inside` of the cut and of the gap after it,
    for both sets: a set that has no such cut is in one of its gaps."""
    at, to = 0, 0
    while at < len(one.cuts) or to < len(other.cuts):
        if at == len(one.cuts) or to == len(other.cuts):
            order = 1 if at == len(one.cuts) else -1
        else:
            order = one.cuts[at].compare(other.cuts[to])
        cut = one.cuts[at] if order <= 0 else other.cuts[to]
        places = []
        for index, is_cut in ((at, order <= 0), (to, order >= 0)):
            places.append((2 * index + 1, 2 * index + 2) if is_cut else (2 * index, 2 * index))
        at, to = at + (order <= 0), to + (order >= 0)
        yield cut, places[0], places[1]


@lru_cache(maxsize=1024)
def real_set(form: Form) -> RealSet | None:
    """Return the set that a form describes, or None if it describes none that is known.

    A pair in round brackets is taken for an interval; whether it is one is for the caller to know.
    """
    try:
        return _set(form)
    except (NoSetError, NoValueError, NotReadableError):
        return None


def _set(form: Form) -> RealSet:
    match form:
        case Inequality(interval=interval) if interval is not None:
            return _set(interval)
        case Union(parts=parts):
            return _union(parts)
        case Conditions():
            return _conditions(form)
        case Excluding(whole=whole, without=without):
            return _set(whole).without(_set(without))
        case Items(opened="\\{", items=items):
            return _union(tuple(Equation("", "", None, item) for item in items))
        case Items(opened="(" | "[", items=(low, high)):
            return _interval(low, high, form.opened == "[", form.closed == "]")
        case Items() if is_list_of_sets(form):
            return _union(form.items)
        case Equation(value=Quantity() as point):
            return RealSet((_cut(point),), (False, True, False))
    raise NoSetError("no set")


def is_interval(form: Form) -> bool:
    """Return whether a form is a set, or could be one as a pair in round brackets can."""
    if isinstance(form, Items):
        return form.opened in ("(", "[") and len(form.items) == 2
    return isinstance(form, (Union, Inequality, Conditions, Excluding))


def is_list_of_sets(form: Items) -> bool:
    """Return whether a list has only sets of numbers, or of one unknown: `(0,1), (2,3)`."""
    names = {name for item in form.items if (name := set_variable(item)) is not None}
    return not form.opened and len(names) < 2 and all(map(is_interval, form.items))


def is_surely_a_set(form: Form) -> bool:
    """Return whether a form is a set and nothing else: `(2,7)` may be a point, and `[2,7]` a vector."""
    if isinstance(form, Items):
        return form.opened in ("(", "[") and len(form.items) == 2 and (
            (form.opened, form.closed) in (("(", "]"), ("[", ")"))
            or any(isinstance(item, Infinite) for item in form.items)
        )  # fmt: skip
    return isinstance(form, (Union, Conditions, Excluding)) or (
        isinstance(form, Inequality) and form.interval is not None
    )


def set_variable(form: Form) -> str | None:
    """Return the unknown of an inequality or of several ones, or None if a set is described without one."""
    if isinstance(form, Inequality):
        return form.variable
    if isinstance(form, Conditions):
        names = {name for part in form.parts if (name := set_variable(part)) is not None}
        return min(names) if names else None
    return None


def _union(parts: tuple[Form, ...]) -> RealSet:
    result = EMPTY
    for part in parts:
        result = result.union(_set(part))
    return result


def _conditions(form: Conditions) -> RealSet:
    r"""Combine conditions. Between inequalities a comma, and even "and", may stand for a union.

    `x < 1, x > 3` and `x < 1 and x > 3` are a union, since no number meets both; `x > 1, x < 3` is an intersection,
    since each number meets one of them. `\ne` always excludes.
    """
    if form.joined == "or":
        return _union(form.parts)
    both, either = REALS, EMPTY
    for part in form.parts:
        if isinstance(part, Inequality) and part.sign == "!=":
            continue
        each = _set(part)
        both, either = both.intersection(each), either.union(each)
    if both.is_empty:
        both = either
    elif form.joined == "," and len(form.parts) > 1 and not (either.is_same(REALS) or _has_exclusion(form)):
        raise NoSetError("a comma with two readings")
    for part in form.parts:
        if isinstance(part, Inequality) and part.sign == "!=":
            both = both.intersection(_set(part))
    return both


def _has_exclusion(form: Conditions) -> bool:
    others = [part for part in form.parts if not (isinstance(part, Inequality) and part.sign == "!=")]
    return len(others) < 2


def _interval(low: Form, high: Form, with_low: bool, with_high: bool) -> RealSet:
    """Return an interval. A pair without numbers between its ends, such as `(7, 2)`, is no interval but a point."""
    below, above = REALS, REALS
    if isinstance(low, Infinite):
        if low.positive or with_low:
            raise NoSetError("an infinite end")
    else:
        below = RealSet((_cut(low),), (False, with_low, True))
    if isinstance(high, Infinite):
        if not high.positive or with_high:
            raise NoSetError("an infinite end")
    else:
        above = RealSet((_cut(high),), (True, with_high, False))
    interval = below.intersection(above)
    if interval.is_empty:
        raise NoSetError("no interval")
    return interval


def _cut(form: Form) -> Cut:
    if isinstance(form, Equation):
        form = form.value
    if not isinstance(form, Quantity) or form.unit is not None:
        raise NoSetError("an end is no number")
    tree = parse(form.expression)
    if names_of(tree):
        raise NoSetError("an end is not known")
    cut = Cut(tree)
    cut.value  # noqa: B018  (raises an error if it is no real number)
    return cut
