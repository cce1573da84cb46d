"""The value of an expression to any number of digits.

Every intermediate value is a finite number of bounded size, or there is no value: `9^{9^{9^9}}` takes no time. A number
with rounding errors is never seen to be zero, so one that cannot be told from zero is no divisor, no base of a power
and no argument of a logarithm.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

MAX_EXPONENT = 10**9
"""The largest binary exponent of a value."""
MAX_NODES = 1000
"""The largest number of operations and numbers in an expression."""
MAX_ARGUMENT_BITS = 5000
"""The largest size of the argument of a function such as the sine, which needs all digits of it."""
MAX_WHOLE = 10**6
"""The largest argument of a factorial and of a binomial coefficient."""
MAX_TERMS = 10_000
"""The largest number of terms in a sum or product."""

_WHOLE_LETTERS = frozenset("kmnN")
"""Letters of whole numbers where one is rounded: ⌈n/2⌉ is ⌊(n+1)/2⌋, but ⌈x/2⌉ is not ⌊(x+1)/2⌋."""
_LARGE = frozenset(("Abs", "UnevaluatedExpr", "conjugate", "im", "log", "re"))
"""The functions that take numbers of any size."""
UNCOMPUTABLE = (ArithmeticError, AttributeError, NotImplementedError, RecursionError, TypeError, ValueError)
"""The exceptions of sympy and mpmath on expressions that make no sense, such as the sine of a set."""


class NoValueError(ValueError):
    """An expression has no finite value, or none that can be computed."""


def value_or_raise(value: Any) -> Any:
    """Raise an error that was kept in place of a value, since a reference is compared often."""
    if isinstance(value, NoValueError):
        raise value
    return value


def names_of(tree: Any) -> frozenset[str]:
    """Return the names of the unknowns in a tree. The imaginary unit is none, nor is the index of a sum.

    Raises:
        NoValueError: if the tree has more than `MAX_NODES` nodes, or one that no value is computed for.
    """
    import sympy

    names, rest, visited = set(), [(tree, frozenset({"i"}))], 0
    while rest:
        node, known = rest.pop()
        visited += 1
        if visited > MAX_NODES or not isinstance(node, sympy.Expr):
            raise NoValueError("it is too large, or no expression")
        if isinstance(node, sympy.Symbol):
            names |= {node.name} - known
        elif isinstance(node, (sympy.Sum, sympy.Product)):
            if len(node.limits) != 1 or len(node.limits[0]) != 3:
                raise NoValueError("a sum without limits")
            ((index, low, high),) = node.limits
            rest += [(node.function, known | {index.name}), (low, known), (high, known)]
        else:
            rest += [(argument, known) for argument in node.args]
    return frozenset(names)


def needs_whole_numbers(tree: Any) -> bool:
    """Return whether a part of a tree is only computed for whole numbers."""
    import sympy

    parts = (sympy.factorial, sympy.binomial, sympy.Sum, sympy.Product)
    if isinstance(tree, parts) or any(map(needs_whole_numbers, tree.args)):
        return True
    if isinstance(tree, (sympy.floor, sympy.ceiling)):
        return bool(names := names_of(tree)) and names <= _WHOLE_LETTERS
    return isinstance(tree, sympy.Pow) and tree.base == -1 and isinstance(tree.exp, sympy.Symbol)


Place = tuple[tuple[str, Fraction], ...]
"""A value for each unknown, by its name."""


def places(names: frozenset[str], count: int, whole: bool = False) -> list[Place]:
    """Return values for unknowns: the same in every process, of both signs, at no special places.

    With `whole` they are whole numbers from 3 to 40, as factorials and the limits of sums need them.
    """
    chosen = []
    for index in range(count):
        place = []
        for name in sorted(names):
            chance = random.Random(f"{name}/{index}")  # a text seeds it the same in every process
            size = Fraction(chance.randrange(300_007, 2_900_003), 1_000_003)
            if whole:
                place.append((name, Fraction(chance.randrange(3, 41))))
                continue
            place.append((name, -size if index % 2 and chance.random() < 0.7 else size))
        chosen.append(tuple(place))
    return chosen


def numeric_value(tree: Any, place: Place, digits: int) -> Any:
    """Return the value of a tree as a complex number of mpmath.

    Args:
        tree: An expression of sympy.
        place: The values of its unknowns.
        digits: The decimal digits of the computation.

    Raises:
        NoValueError: if it has no finite value there.
    """
    return value_or_raise(_numeric_or_error(tree, place, digits))


@lru_cache(maxsize=16384)
def _numeric_or_error(tree: Any, place: Place, digits: int) -> Any:
    from mpmath import mp
    from mpmath.libmp import NoConvergence

    with mp.workdps(digits):
        try:
            return _Evaluation(mp, dict(place)).value(tree)
        except NoValueError as error:
            return error
        except (*UNCOMPUTABLE, NoConvergence) as error:
            return NoValueError(f"it cannot be computed ({type(error).__name__})")


class _Evaluation:
    """One evaluation of a tree with mpmath."""

    def __init__(self, mp: Any, place: dict[str, Fraction]) -> None:
        self._mp = mp
        self._point = {name: mp.mpf(value.numerator) / value.denominator for name, value in place.items()}
        self._functions = _Functions(mp).table()

    def value(self, tree: Any) -> Any:
        return self._checked(self._value(tree))

    def _checked(self, number: Any) -> Any:
        mp = self._mp
        number = mp.mpmathify(number)
        if not mp.isfinite(number):
            raise NoValueError("it is infinite or undefined")
        if number != 0 and abs(mp.mag(number)) > MAX_EXPONENT:
            raise NoValueError("it is too large or too small")
        return number

    def _value(self, tree: Any) -> Any:
        import sympy

        mp = self._mp
        match tree:
            case sympy.Rational():
                if tree.q == 0:
                    raise NoValueError("a division by zero")
                return mp.mpf(int(tree.p)) / int(tree.q)
            case sympy.Float():
                return mp.mpf(str(tree))
            case sympy.Symbol():
                return self._unknown(tree.name)
            case sympy.NumberSymbol():
                return {"Pi": mp.pi, "Exp1": mp.e, "GoldenRatio": mp.phi}[type(tree).__name__] * mp.one
            case sympy.core.numbers.ImaginaryUnit():
                return mp.j
            case sympy.Add():
                return mp.fsum([self.value(term) for term in tree.args])
            case sympy.Mul():
                return mp.fprod([self.value(factor) for factor in tree.args])
            case sympy.Pow():
                return self._power(self.value(tree.base), self.value(tree.exp), tree.exp)
            case sympy.Sum() | sympy.Product():
                return self._series(tree)
        name = type(tree).__name__
        if name not in self._functions:
            raise NoValueError(f"{name} is not computed")
        arguments = [self.value(argument) for argument in tree.args]
        if (
            any(argument != 0 and mp.mag(argument) > MAX_ARGUMENT_BITS for argument in arguments)
            and name not in _LARGE
        ):
            raise NoValueError(f"{name} is not computed for numbers of this size")
        return self._functions[name](*arguments)

    def _unknown(self, name: str) -> Any:
        if name == "i" and name not in self._point:
            return self._mp.j
        if name not in self._point:
            raise NoValueError(f"{name} has no value")
        return self._point[name]

    def _power(self, base: Any, exponent: Any, written: Any) -> Any:
        mp = self._mp
        if is_like_zero(mp, base):
            if mp.re(exponent) <= 0 or is_like_zero(mp, exponent):
                raise NoValueError("0 to the power of 0, or a division by zero")
            return mp.zero
        if abs(exponent) * max(1, abs(mp.mag(base))) > MAX_EXPONENT:
            raise NoValueError("a power that is too large or too small")
        if _is_odd_root(written) and mp.im(base) == 0 and base < 0:  # the cube root of -8 is -2 in schools
            return -mp.power(-base, exponent)
        return mp.power(base, exponent)

    def _series(self, tree: Any) -> Any:
        mp = self._mp
        ((index, low, high),) = tree.limits  # checked by `names_of`
        first, last = self.value(low), self.value(high)
        if max(abs(first), abs(last)) > 10**9:
            raise NoValueError("a sum with large limits")
        if first != int(mp.re(first)) or last != int(mp.re(last)) or last - first >= MAX_TERMS:
            raise NoValueError("a sum of too many terms")
        outer = self._point.get(index.name)
        terms = []
        for value in range(int(mp.re(first)), int(mp.re(last)) + 1):
            self._point[index.name] = mp.mpf(value)
            terms.append(self.value(tree.function))
        if outer is None:
            self._point.pop(index.name, None)
        else:
            self._point[index.name] = outer
        return mp.fsum(terms) if type(tree).__name__ == "Sum" else mp.fprod(terms)


def _is_odd_root(exponent: Any) -> bool:
    return (
        bool(getattr(exponent, "is_Rational", False))
        and exponent.p == 1
        and exponent.q % 2 == 1
        and exponent.q > 1
    )


def is_like_zero(mp: Any, value: Any) -> bool:
    """Return whether a value cannot be told from zero with the present number of digits."""
    return bool(abs(value) < mp.mpf(10) ** (-mp.dps // 2))


class _Functions:
    """The functions of sympy, by the names of their classes, as functions of mpmath numbers."""

    def __init__(self, mp: Any) -> None:
        self._mp = mp

    def table(self) -> Mapping[str, Callable[..., Any]]:
        mp = self._mp
        same = (
            "sin",
            "cos",
            "sinh",
            "cosh",
            "tanh",
            "asin",
            "acos",
            "atan",
            "asinh",
            "acosh",
            "atanh",
            "re",
            "im",
        )
        return {
            **{name: getattr(mp, name) for name in same},
            "log": self._log,
            "exp": lambda value: mp.exp(value) if abs(value) <= MAX_EXPONENT else mp.inf,
            "tan": lambda value: self._divided(mp.sin(value), mp.cos(value)),
            "sec": lambda value: self._divided(mp.one, mp.cos(value)),
            "csc": lambda value: self._divided(mp.one, mp.sin(value)),
            "cot": lambda value: self._divided(mp.cos(value), mp.sin(value)),
            "floor": lambda value: mp.floor(self._settled(value)),
            "ceiling": lambda value: mp.ceil(self._settled(value)),
            "Abs": abs,
            "arg": lambda value: mp.arg(self._nonzero(value)),
            "conjugate": mp.conj,
            "UnevaluatedExpr": lambda value: value,
            "factorial": lambda value: mp.factorial(self._whole(value)),
            "binomial": lambda top, bottom: mp.binomial(self._whole(top), self._whole(bottom)),
            "Max": lambda *values: max(map(_real, values)),
            "Min": lambda *values: min(map(_real, values)),
            "Mod": self._remainder,
        }

    def _nonzero(self, value: Any) -> Any:
        if is_like_zero(self._mp, value):
            raise NoValueError("a value that cannot be told from zero")
        return value

    def _divided(self, over: Any, under: Any) -> Any:
        return over / self._nonzero(under)

    def _log(self, value: Any, base: Any = None) -> Any:
        logarithm = self._mp.log(self._nonzero(value))
        return logarithm if base is None else self._divided(logarithm, self._mp.log(self._nonzero(base)))

    def _settled(self, value: Any) -> Any:
        """Return a value, or the whole number that it cannot be told from."""
        nearest = self._mp.nint(value)
        return nearest if is_like_zero(self._mp, value - nearest) else value

    def _remainder(self, value: Any, by: Any) -> Any:
        divisor = _real(self._nonzero(by))
        return _real(value) - divisor * self._mp.floor(self._settled(_real(value) / divisor))

    def _whole(self, value: Any) -> Any:
        if self._mp.im(value) != 0 or value != self._mp.floor(value) or not 0 <= value <= MAX_WHOLE:
            raise NoValueError("not computed for this number")
        return value


def _real(value: Any) -> Any:
    if getattr(value, "imag", 0) != 0:
        raise NoValueError("complex numbers have no order")
    return value.real if hasattr(value, "real") else value
