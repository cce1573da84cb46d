"""The values that a few numbers can reach, each used exactly once, and the expressions that reach them.

Both are computed over subsets: a value of a set of numbers is a value of one part, an operator, and a value of the
rest. Values are exact fractions.
"""

import functools
import random
from collections.abc import Iterator
from fractions import Fraction

OPERATORS = "+-*/"
# There are about half a million expressions of 5 numbers, and more than ten million of 6.
MAX_NUMBERS = 5

_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
_ATOM = 3

_Term = tuple[str, int, Fraction]  # text, precedence of its outermost operator, value


def apply(operator: str, left: Fraction, right: Fraction) -> Fraction:
    """Return the exact value of `left operator right`.

    Raises:
        ZeroDivisionError: for a division by zero.
    """
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    return left / right


def reachable_values(numbers: tuple[int, ...], operators: str = OPERATORS) -> frozenset[int | Fraction]:
    """Return the values of all expressions that use each of `numbers` exactly once, and only `operators`.

    Whole values may be of either type.
    """
    _refuse_too_many(numbers)
    return _values(tuple(sorted(numbers)), operators)


def expressions(numbers: tuple[int, ...]) -> dict[str, Fraction]:
    """Return every expression that uses each of `numbers` exactly once, with its value, in a fixed order.

    Parentheses appear only where they change the value: `1+(2+3)` is written as `1+2+3`.
    """
    _refuse_too_many(numbers)
    return {text: value for text, _, value in _terms(tuple(sorted(numbers)))}


def solutions(numbers: tuple[int, ...], target: int) -> list[str]:
    """Return the members of `expressions(numbers)` with the value `target`."""
    return [text for text, value in expressions(numbers).items() if value == target]


def value_of_random_expression(numbers: tuple[int, ...], rng: random.Random) -> Fraction | None:
    """Return the value of a random expression that uses each of `numbers` once, or None if it divides by zero."""
    parts = [Fraction(number) for number in numbers]
    while len(parts) > 1:
        rng.shuffle(parts)
        right, left = parts.pop(), parts.pop()
        operator = rng.choice(OPERATORS)
        if operator == "/" and not right:
            return None
        parts.append(apply(operator, left, right))
    return parts[0]


def _refuse_too_many(numbers: tuple[int, ...]) -> None:
    if not 1 <= len(numbers) <= MAX_NUMBERS:
        raise ValueError(f"the solver takes 1 to {MAX_NUMBERS} numbers, not {len(numbers)}")


def _partitions(numbers: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield every division of sorted `numbers` into two non-empty sorted parts, in both orders, without repeats."""
    seen = set()
    for mask in range(1, 2 ** len(numbers) - 1):
        left = tuple(n for i, n in enumerate(numbers) if mask >> i & 1)
        if left not in seen:
            seen.add(left)
            yield left, tuple(n for i, n in enumerate(numbers) if not mask >> i & 1)


@functools.lru_cache(maxsize=4096)
def _values(numbers: tuple[int, ...], operators: str) -> frozenset[int | Fraction]:
    if len(numbers) == 1:
        return frozenset(numbers)
    found: set[int | Fraction] = set()
    multiplies, divides = "*" in operators, "/" in operators
    for left_part, right_part in _partitions(numbers):
        for left in _values(left_part, operators):
            for right in _values(right_part, operators):
                found.add(left + right)
                found.add(left - right)
                if multiplies:
                    found.add(left * right)
                if divides and right:
                    # A whole quotient stays an int, which is many times faster than a fraction.
                    found.add(Fraction(left, right) if left % right else left // right)
    return frozenset(found)


@functools.lru_cache(maxsize=512)
def _terms(numbers: tuple[int, ...]) -> tuple[_Term, ...]:
    if len(numbers) == 1:
        return ((str(numbers[0]), _ATOM, Fraction(numbers[0])),)
    found: dict[str, _Term] = {}
    for left_part, right_part in _partitions(numbers):
        for left in _terms(left_part):
            for right in _terms(right_part):
                for operator in OPERATORS:
                    if operator != "/" or right[2]:
                        term = _join(left, operator, right)
                        found.setdefault(term[0], term)
    return tuple(found.values())


def _join(left: _Term, operator: str, right: _Term) -> _Term:
    precedence = _PRECEDENCE[operator]
    left_text = left[0] if left[1] >= precedence else f"({left[0]})"
    # Operators associate to the left, so equal precedence needs parentheses only after - and /.
    binds = right[1] > precedence or (right[1] == precedence and operator in "+*")
    right_text = right[0] if binds else f"({right[0]})"
    return left_text + operator + right_text, precedence, apply(operator, left[2], right[2])
