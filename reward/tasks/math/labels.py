"""The left sides of equations that only name what the right side is."""

from __future__ import annotations

import re

_GREEK = re.compile(
    r"^\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|rho|sigma|phi|omega)(?:_\{?\w+\}?)?$"
)
_SETS = r"[A-Z]'?(?:\s*\\(?:cup|cap|setminus)(?![a-zA-Z])\s*[A-Z]'?)+"
_OPERATORS = r"det|rank|rk|tr|trace|dim|nullity|deg|ord|Var|Cov"
_LABEL = re.compile(
    r"^(?:[a-zA-Z](?:_\{?\s*\\?\w+\s*\}?)?(?:'|\^\{?(?:-1|T)\}?)?"  # x_1, k_{\max}, f', A^{-1}
    r"|[a-zA-Z](?::[a-zA-Z])+"  # a:b
    r"|\\(?:nabla|Delta)\s*[a-zA-Z](?:\([^()=]*\))?|[PE]\s*\([^()]*\)"  # \nabla f, P(X=3)
    r"|\\complement_?\s*\{?[A-Z]\}?\s*[A-Z]"
    r"|\\[a-zA-Z]+|\\lambda_\{?\w+\}?|\\(?:vec|hat|bar|tilde|overrightarrow)\s*\{?\\?\w+\s*\}?"  # \theta, \vec{v}
    r"|[a-zA-Z]'*(?:_\{?\w+\}?)?(?:\^\{?-1\}?)?\s*\([^()=]*\)"  # f(x), P(A \cup B)
    rf"|\\?(?:{_OPERATORS})(?![a-zA-Z])\s*(?:\(\s*)?[A-Z](?:_\{{?\w+\}}?)?'?(?:\s*\))?"  # \det A, rank(A)
    rf"|{_SETS}|pH|pOH"  # A \cup B
    r"|m?\s*\\angle\s*\w+|\|[A-Z]{2}\||\\overline\s*\{[A-Z]{2}\}"  # \angle ABC, |AB|
    r"|\(\s*\\?[a-zA-Z]+(?:\s*,\s*\\?[a-zA-Z]+)+\s*\)"  # (x, y)
    r"|[A-Z]{2}|[a-zA-Z]{3}[a-zA-Z ]*)$"  # AB, Area of the square
)
_FUNCTION = re.compile(r"^([a-zA-Z]'*(?:_\{?\w+\}?)?)\s*\(\s*([a-zA-Z])\s*\)$")
_SUM = re.compile(r"^\d*[a-t](?:\s*[+-]\s*\d*[a-t])+$")
_SERIES = re.compile(r"^\\(?:sum|prod|int|lim)(?![a-zA-Z])")
_INDEXED = re.compile(r"^(\\?[a-zA-Z]+)_\{?(\d+)\}?$")


def label_of(left: str) -> str | None:
    """Return the name that a left side is, without the marks of words, or None if it is an expression."""
    name = re.sub(r"\\text\s*\{\s*([^{}]*?)\s*\}", r"\1", left).strip()
    return name if _LABEL.match(name) and name.lstrip("\\") not in ("pi", "infty", "e") else None


def is_variable(text: str) -> bool:
    """Return whether a text is one letter, with or without a subscript, other than the numbers e and i."""
    return text not in ("e", "i") and bool(re.match(r"^[a-zA-Z](?:_\{?\w+\}?)?$", text) or _GREEK.match(text))


def function_and_argument(label: str | None) -> tuple[str, str] | None:
    """Return `f` and `x` for the label `f(x)`."""
    found = _FUNCTION.match(label or "")
    return (found[1], found[2]) if found else None


def is_sum_or_series(left: str) -> bool:
    r"""Return whether a left side says what was asked for, as `m+n` and `\sum_{n=1}^\infty \frac{1}{n^2}` do.

    Beside a reference that is an equation itself, `x + y = 5` is a line.
    """
    return bool(_SUM.match(left) or _SERIES.match(left))


def base_and_letter(label: str | None) -> tuple[str, str] | None:
    """Return `a` and `n` for the label `a_n`."""
    found = re.fullmatch(r"([a-zA-Z])_\{?([a-z])\}?", label or "")
    return (found[1], found[2]) if found else None


def base_and_index(label: str | None) -> tuple[str, str] | None:
    """Return `x` and `1` for the label `x_1`."""
    found = _INDEXED.match(label or "")
    return (found[1], found[2]) if found else None
