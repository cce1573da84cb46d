r"""Compare sums and products term by term: `\sum_{k=0}^{\infty} \frac{x^k}{k!}` and the same with another index."""

from __future__ import annotations

from typing import Any

from reward.tasks.math.agreement import same_value
from reward.tasks.math.values import names_of


def same_terms(expected: Any, found: Any) -> bool:
    """Return whether two trees are sums, or products, with the same limits and the same terms.

    The value of such a sum may not be computed, as that of an infinite one. A factor before the sums is the same too.

    Raises:
        NoValueError: if a limit or a term has no value at a place.
    """
    one, other = _parts(expected), _parts(found)
    if one is None or other is None or type(one[1]) is not type(other[1]):
        return False
    if not _same(one[0], other[0]):
        return False
    ((index, low, high),) = one[1].limits
    ((other_index, other_low, other_high),) = other[1].limits
    if not (_same(low, other_low) and _same(high, other_high)):
        return False
    term, other_term = one[1].function, other[1].function
    own, others = names_of(term) | {index.name}, names_of(other_term) | {other_index.name}
    if index.name == other_index.name:
        return same_value(term, other_term)
    if index.name in others or other_index.name in own:
        return False
    return same_value(_with_name(term, index.name), _with_name(other_term, other_index.name))


def _parts(tree: Any) -> tuple[Any, Any] | None:
    """Return the factor and the sum of a product with one sum, or of a sum alone."""
    import sympy

    if isinstance(tree, (sympy.Sum, sympy.Product)):
        return (sympy.Integer(1), tree) if len(tree.limits) == 1 and len(tree.limits[0]) == 3 else None
    if isinstance(tree, sympy.Mul):
        sums = [factor for factor in tree.args if isinstance(factor, (sympy.Sum, sympy.Product))]
        rest = [factor for factor in tree.args if not isinstance(factor, (sympy.Sum, sympy.Product))]
        if len(sums) == 1 and _parts(sums[0]) is not None:
            return sympy.Mul(*rest, evaluate=False), sums[0]
    return None


def _same(expected: Any, found: Any) -> bool:
    import sympy

    if expected is sympy.oo or found is sympy.oo:
        return expected is found
    return same_value(expected, found)


def _with_name(tree: Any, name: str) -> Any:
    """Return a term whose index has a name that occurs nowhere else, since `i` would be the imaginary unit."""
    import sympy

    return tree.xreplace({sympy.Symbol(name): sympy.Symbol("index of the sum")})
