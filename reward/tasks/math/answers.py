"""Answers in mathematical texts: find one in a response, and tell if its value is finite.

The second part is needed because `math-verify` subtracts the answer from the reference and tests if the difference is
zero. Sympy says yes for some differences that contain a division by zero, so that such an answer would equal nearly
every number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_BOX = "\\boxed{"
_MARK = "####"


def last_answer(text: str) -> str | None:
    r"""Return the content of the last `\boxed{…}`, or, without a box, the rest of the line after the last `####`.

    The result is None if the text has neither, or if the last box is not closed.
    """
    if (start := text.rfind(_BOX)) >= 0:
        return _up_to_closing_brace(text, start + len(_BOX))
    _, mark, tail = text.rpartition(_MARK)
    return tail.strip().partition("\n")[0].strip() if mark else None


def reference_answer(text: str) -> str:
    """Return the answer of a reference solution.

    Here the mark `####` takes precedence over a box, and a text without either is the answer itself.
    """
    _, mark, tail = text.rpartition(_MARK)
    if mark:
        return tail.strip()
    answer = last_answer(text)
    return text.strip() if answer is None else answer


def _up_to_closing_brace(text: str, start: int) -> str | None:
    """Return the text from `start` to the brace that closes the one before `start`."""
    depth = 1
    for position in range(start, len(text)):
        if text[position] in "{}" and text[position - 1] != "\\":
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return text[start:position].strip()
    return None


def all_finite(parsed: Iterable[Any]) -> bool:
    """Return True if no value in `parsed`, a result of `math_verify.parse`, is infinite or undefined.

    Text that could not be parsed counts as finite, because it is only compared letter by letter.
    """
    return all(isinstance(value, str) or _is_finite(value) for value in parsed)


def _is_finite(value: Any) -> bool:
    """Return True if every number in `value` is finite, also in sets, tuples, matrices and equations."""
    import sympy
    from sympy.core.relational import Relational
    from sympy.logic.boolalg import Boolean

    if isinstance(value, sympy.MatrixBase):
        return all(map(_is_finite, value.flat()))
    if isinstance(value, sympy.Interval):  # (2, oo) is a valid set
        return all(end in (sympy.oo, -sympy.oo) or _is_finite(end) for end in (value.start, value.end))
    if isinstance(value, (sympy.Set, sympy.Tuple, Relational, Boolean)):
        return all(map(_is_finite, value.args))
    return not isinstance(value, sympy.Expr) or _is_finite_number(value)


def _is_finite_number(expression: Any) -> bool:
    """Return False if some part of an expression cannot be computed, whatever the values of its unknowns."""
    import sympy

    undefined = (sympy.nan, sympy.zoo, sympy.oo, -sympy.oo)
    try:
        value = expression.doit()
        return not value.has(*undefined) and (bool(value.free_symbols) or not value.evalf().has(*undefined))
    except (ArithmeticError, ValueError, TypeError, AttributeError, NotImplementedError):
        return False  # sympy has no value for it
