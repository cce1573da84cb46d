"""Read and compare what depends on whether a whole number is odd: `n/2 if n is even, (n-1)/2 if n is odd`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from typing import Any

from reward.tasks.math.agreement import agree, both_values
from reward.tasks.math.expressions import parse
from reward.tasks.math.forms import Branch, Form, Parity, Piecewise, Quantity
from reward.tasks.math.values import Place, names_of, places

_COMPARED = (4, 5, 6, 7, 10, 11, 16, 17)
"""The whole numbers at which functions are compared."""
_SAID = r"(?P<{name}>[a-zA-Z])\s+(?:is\s+)?(?:an?\s+)?(?P<{kind}>odd|even)(?:\s+(?:integer|number))?"
_PARITY = re.compile(rf"^{_SAID.format(name='name', kind='kind')}$")
_REMAINDER = re.compile(r"^(?P<name>[a-zA-Z])\s*\\equiv\s*(?P<rest>[01])\s*\\pmod\s*\{?2\}?$")
_WORD = r"\s*,?\s*(?:if|for|when|where)\s+(?:all\s+)?"
_IN_WORDS = re.compile(
    rf"^(?P<one>[^,;]+?){_WORD}{_SAID.format(name='name', kind='kind')}\s*[,;]?\s*(?:and|or|while|but)?\s*"
    rf"(?P<two>[^,;]+?)(?:{_WORD}{_SAID.format(name='other', kind='second')}|\s*,?\s*otherwise)$"
)


def parity(plain: str) -> Parity | None:
    r"""Read `n is odd` and `n \equiv 0 \pmod 2`."""
    if found := _PARITY.match(plain):
        return Parity(found["name"], found["kind"] == "odd")
    if found := _REMAINDER.match(plain):
        return Parity(found["name"], found["rest"] == "1")
    return None


def cases_in_words(plain: str) -> Piecewise | None:
    """Read `n/2 for n even and (n+1)/2 for n odd`."""
    found = _IN_WORDS.match(plain) if "odd" in plain or "even" in plain else None
    if not found or found["other"] not in (None, found["name"]) or found["second"] == found["kind"]:
        return None
    is_odd = found["kind"] == "odd"
    first = Branch(found["one"].strip(), Parity(found["name"], is_odd))
    second = None if found["other"] is None else Parity(found["name"], not is_odd)
    return Piecewise((first, Branch(found["two"].strip(), second)))


def parity_variable(form: Form) -> str | None:
    """Return the letter whose parity decides in a function by cases, or None if something else does."""
    if not isinstance(form, Piecewise):
        return None
    conditions = [branch.condition for branch in form.branches if branch.condition is not None]
    names = {condition.variable if isinstance(condition, Parity) else None for condition in conditions}
    return names.pop() if len(names) == 1 else None


def same_by_parity(expected: Piecewise, found: Form) -> bool:
    """Return whether a function by the parity of its letter equals another one, or an expression, at whole numbers.

    Raises:
        NotReadableError, NoValueError: if one has no value.
    """
    variable = parity_variable(expected) or parity_variable(found)
    if variable is None:
        return False
    others = _values_by_parity(found, variable)
    if others is None:
        return False
    for number, (one, other) in enumerate(
        zip(_values_by_parity(expected, variable) or (), others, strict=True)
    ):
        if (one is None) != (other is None):
            return False
        if one is not None and not _agree_at(one, other, variable, _COMPARED[number]):
            return False
    return True


def _values_by_parity(form: Form, variable: str) -> list[Any] | None:
    """Return the tree of the value at each of the whole numbers, None where no case holds."""
    if isinstance(form, Quantity) and form.unit is None:
        tree = parse(form.expression)
        return [tree] * len(_COMPARED) if variable in names_of(tree) else None
    if parity_variable(form) != variable or not isinstance(form, Piecewise):
        return None
    return [next((parse(value) for value in _values(form, number)), None) for number in _COMPARED]


def _values(form: Piecewise, number: int) -> Iterator[str]:
    for branch in form.branches:
        if branch.condition is None or (
            isinstance(branch.condition, Parity) and branch.condition.is_odd == bool(number % 2)
        ):
            yield branch.value


def _agree_at(one: Any, other: Any, variable: str, number: int) -> bool:
    rest = (names_of(one) | names_of(other)) - {variable}
    (place,) = places(rest, 1)
    at: Place = tuple(sorted((*place, (variable, Fraction(number)))))
    return agree(partial(both_values, one, at, other, at))
