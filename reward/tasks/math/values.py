"""Tells finite values from infinite and undefined ones.

`math-verify` subtracts the answer from the reference and asks whether the difference is zero. Sympy answers yes for
some differences that contain a division by zero, so that such an answer equals nearly every number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sympy import Basic


def all_finite(parsed: Iterable[Any]) -> bool:
    """Whether no value among `parsed`, as `math_verify.parse` returns them, is infinite or undefined.

    Text that could not be parsed counts as finite: it is only ever compared letter by letter.
    """
    return all(isinstance(value, str) or _is_finite(value) for value in parsed)


def _is_finite(value: Any) -> bool:
    """Whether every number in `value` is finite: in sets, tuples, matrices and equations as well."""
    import sympy
    from sympy.core.relational import Relational
    from sympy.logic.boolalg import Boolean

    if isinstance(value, sympy.MatrixBase):
        return all(map(_is_finite, value.flat()))
    if isinstance(value, sympy.Interval):  # (2, oo) is a proper set
        return all(end in (sympy.oo, -sympy.oo) or _is_finite(end) for end in (value.start, value.end))
    if isinstance(value, (sympy.Set, sympy.Tuple, Relational, Boolean)):
        return all(map(_is_finite, value.args))
    return not isinstance(value, sympy.Expr) or _is_finite_number(value)


def _is_finite_number(expression: Basic) -> bool:
    """An expression with unknowns is finite unless something in it cannot be computed for any of their values."""
    import sympy

    undefined = (sympy.nan, sympy.zoo, sympy.oo, -sympy.oo)
    try:
        value = expression.doit()
        return not value.has(*undefined) and (bool(value.free_symbols) or not value.evalf().has(*undefined))
    except (ArithmeticError, ValueError, TypeError, AttributeError, NotImplementedError):
        return False  # sympy has no value for it
