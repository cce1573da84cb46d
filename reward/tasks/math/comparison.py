"""Decide whether an answer equals a reference.

Texts that are the same after cleaning are equal before anything is evaluated. Everything else is compared by its form
(`forms.py`): numbers exactly, expressions by their values at several places with many digits, lists element by element.
An answer without a finite value equals nothing but its own text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from reward.tasks.math.agreement import same_value
from reward.tasks.math.cleaning import clean, without_blanks
from reward.tasks.math.constants import same_general_solutions, same_with_constants
from reward.tasks.math.expressions import NotReadableError, parse
from reward.tasks.math.families import is_residue, same_families
from reward.tasks.math.fixed_comparison import (
    is_based,
    is_chosen,
    is_ratio_of,
    is_time_fraction,
    is_time_ratio,
    same_dates,
    same_letters,
    same_ratios,
    same_times,
    same_words,
)
from reward.tasks.math.forms import (
    Based,
    Choice,
    Clock,
    Conditions,
    Congruence,
    Date,
    Declared,
    Equation,
    Excluding,
    Family,
    Form,
    Inequality,
    Infinite,
    Items,
    Letters,
    Matrix,
    Piecewise,
    Quantity,
    Ratio,
    Restricted,
    TupleFamily,
    Union,
    Unread,
    Word,
)
from reward.tasks.math.labels import base_and_index, function_and_argument, is_sum_or_series, is_variable
from reward.tasks.math.piecewise import same_branches, same_functions
from reward.tasks.math.proportion import proportion, same_inequalities
from reward.tasks.math.quantity_comparison import as_written, same_quantities
from reward.tasks.math.reading import read
from reward.tasks.math.real_sets import is_list_of_sets, is_surely_a_set, real_set, set_variable
from reward.tasks.math.sequences import same_tuples
from reward.tasks.math.values import NoValueError, names_of
from reward.tasks.math.vectors import components, is_marked_vector, point


def equal(reference: str, answer: str) -> bool:
    """Return whether an answer means the same as a reference. Depends on the two texts alone; never raises."""
    expected, found = clean(reference), clean(answer)
    if without_blanks(expected) == without_blanks(found):
        return bool(found)
    return equal_forms(read(expected), read(found))


def equal_forms(expected: Form, found: Form) -> bool:
    """Compare two forms. Where the pair has no rule in one order, it has one in the other, or none."""
    if isinstance(expected, Choice) or isinstance(found, Choice):
        return _choices(expected, found)
    if isinstance(expected, Letters):
        return same_letters(expected, found)
    if isinstance(
        found, Letters
    ):  # `ABC` may be a name, so only a reference with separate letters is that of choices
        return isinstance(expected, Items) and same_letters(found, expected)
    if isinstance(expected, Declared) or isinstance(found, Declared):
        return _same_label(expected, found) and same_with_constants(expected, found)
    rule = _RULES.get((type(expected), type(found)))
    if rule is not None:
        return rule(expected, found)
    mirrored = _RULES.get((type(found), type(expected)))
    return mirrored is not None and mirrored(found, expected)


def _choices(expected: Form, found: Form) -> bool:
    """Compare choices. A reference with a value also accepts the value alone."""
    chosen = is_chosen(expected, found)
    if chosen is not None or not isinstance(expected, Choice):
        return bool(chosen)
    return equal_forms(expected.value, found.value if isinstance(found, Choice) else found)


def _same_label(expected: Form, found: Form) -> bool:
    labels = []
    for form in (expected, found):
        form = form.value if isinstance(form, Declared) else form
        labels.append(form.label if isinstance(form, Equation) else None)
    one, other = labels
    return one is None or other is None or one == other or not (is_variable(one) and is_variable(other))


def _labeled(expected: Form, found: Form) -> bool:
    """Compare an equation with something else: `x = 4` is 4. `x^2 = 4` and `3 = 4` are no numbers."""
    equation = expected if isinstance(expected, Equation) else found
    if not isinstance(equation, Equation):
        return False
    is_named = equation.label is not None or (equation is found and is_sum_or_series(equation.left))
    if not is_named and not _is_true(equation):
        return False
    other = found if equation is expected else expected
    if isinstance(equation.value, Items) and isinstance(other, _SETS) and not _may_be_a_set(equation):
        return False
    return equal_forms(*(each.value if each is equation else each for each in (expected, found)))


def _may_be_a_set(equation: Equation) -> bool:
    """Return whether a name may be that of a set: `(x, y) = (1, 2)` and `P = (1, 2)` are points."""
    return is_surely_a_set(equation.value) or bool(
        re.fullmatch(r"[DIRS]|[a-zA-Z]{3}[a-zA-Z ]*", equation.label or "")
    )


def _is_true(equation: Equation) -> bool:
    """Return whether both sides are the same number, as in `2 + 2 = 4`."""
    try:
        left, right = parse(equation.left), parse(equation.right)
        return not names_of(left) | names_of(right) and same_value(left, right)
    except (NotReadableError, NoValueError):
        return False


def _equations(expected: Equation, found: Equation) -> bool:
    one, other = expected.label, found.label
    if _same_base(one, other) and same_general_solutions(expected, found):
        return True
    function, other_function = function_and_argument(one), function_and_argument(other)
    if function and other_function and function[0] == other_function[0] and function[1] != other_function[1]:
        return _renamed_functions(expected.value, found.value, {other_function[1]: function[1]})
    if (
        one is not None
        and other is not None
        and (one == other or not (is_variable(one) and is_variable(other)))
    ):
        return equal_forms(expected.value, found.value)
    return proportion(expected, found) is not None


def _same_base(one: str | None, other: str | None) -> bool:
    """Return whether two labels are those of one function: `y` and `y(x)`, `f(x)` and `f(t)`."""
    names = [re.sub(r"\s*\([a-z]\)$", "", label or "") for label in (one, other)]
    return names[0] == names[1] and is_variable(names[0])


def _renamed_functions(expected: Form, found: Form, renamed: Mapping[str, str]) -> bool:
    """Compare the values of `f(x)` and `f(t)`, whose arguments are only names."""
    if isinstance(expected, Piecewise) and isinstance(found, Piecewise):
        return bool(same_functions(expected, found, renamed))
    if not isinstance(expected, Quantity) or not isinstance(found, Quantity):
        return False
    ((argument, name),) = renamed.items()
    try:
        if argument in names_of(parse(expected.expression)) or name in names_of(parse(found.expression)):
            return False
    except (NotReadableError, NoValueError):
        return False
    return same_quantities(expected, found, renamed)


def _sets(expected: Form, found: Form) -> bool:
    """Compare sets of real numbers by their elements, or by their ends where these are not known."""
    one, other = set_variable(expected), set_variable(found)
    if one is not None and other is not None and one != other:
        return False
    left, right = real_set(expected), real_set(found)
    if left is not None and right is not None:
        return left.is_same(right)
    if isinstance(expected, Excluding) and isinstance(found, Excluding):
        return equal_forms(expected.whole, found.whole) and equal_forms(expected.without, found.without)
    if (
        isinstance(expected, Inequality)
        and isinstance(found, Inequality)
        and same_inequalities(expected, found)
    ):
        return True
    parts, other_parts = _intervals(expected), _intervals(found)
    return bool(parts and other_parts) and _same_in_some_order(parts, other_parts)


def _intervals(form: Form) -> tuple[Form, ...]:
    """Return the intervals of a union, or nothing if a form is no union of intervals."""
    match form:
        case Inequality(interval=interval):
            return () if interval is None else _intervals(interval)
        case Union(parts=parts) | Conditions(parts=parts, joined="or" | ","):
            return _joined([_intervals(part) for part in parts])
        case Items(opened="(" | "[", items=(_, _)):
            return (form,)
        case Items() if is_list_of_sets(form):
            return _joined([_intervals(item) for item in form.items])
    return ()


def _joined(parts: Sequence[tuple[Form, ...]]) -> tuple[Form, ...]:
    return tuple(each for part in parts for each in part) if all(parts) else ()


def _items(expected: Items, found: Items) -> bool:
    if len(expected.items) != len(found.items):
        return False
    one, other = (expected.opened, expected.closed), (found.opened, found.closed)
    if "" in (expected.opened, found.opened):
        bracketed = other if expected.opened == "" else one
        allowed = [("", ""), ("\\{", "\\}")]
        if not (expected.are_alternatives or found.are_alternatives):
            allowed += [("(", ")"), *([("[", "]")] if len(found.items) > 2 else [])]
        if bracketed not in allowed:
            return False
    elif one != other:
        return False
    if expected.is_ordered or found.is_ordered:
        return all(equal_forms(a, b) for a, b in zip(expected.items, found.items, strict=True))
    return _same_in_some_order(*_without_indices(expected.items, found.items))


def _without_indices(
    expected: Sequence[Form], found: Sequence[Form]
) -> tuple[Sequence[Form], Sequence[Form]]:
    """Return two lists without the indices of `x_1 = 0, x_2 = 7` if only one of them has these: they name roots."""
    one, other = _unindexed(expected), _unindexed(found)
    if (one is None) == (other is None):
        return expected, found
    return expected if one is None else one, found if other is None else other


def _unindexed(items: Sequence[Form]) -> Sequence[Form] | None:
    names = [base_and_index(item.label) if isinstance(item, Equation) else None for item in items]
    bases = {name[0] for name in names if name is not None}
    if None in names or len(bases) != 1 or len(set(names)) != len(names):
        return None
    return [replace(item, label=min(bases)) for item in items if isinstance(item, Equation)]


def _same_in_some_order(expected: Sequence[Form], found: Sequence[Form]) -> bool:
    left = list(found)
    for item in expected:
        for index, candidate in enumerate(left):
            if equal_forms(item, candidate):
                del left[index]
                break
        else:
            return False
    return not left


def _matrices(expected: Matrix, found: Matrix) -> bool:
    if [len(row) for row in expected.rows] != [len(row) for row in found.rows]:
        return False
    rows = zip(expected.rows, found.rows, strict=True)
    return all(equal_forms(a, b) for row, other in rows for a, b in zip(row, other, strict=True))


def _matrix_tuple(expected: Matrix, found: Items) -> bool:
    """A row or a column is the vector with these elements."""
    if not (len(expected.rows) == 1 or all(len(row) == 1 for row in expected.rows)):
        return False
    elements = tuple(cell for row in expected.rows for cell in row)
    if (found.opened, found.closed) != ("(", ")") and not (found.opened == "[" and len(elements) > 2):
        return False  # `[1, 2]` may be an interval
    return _items(Items(elements, found.opened, found.closed), found)


def _matrix_expression(expected: Matrix, found: Quantity) -> bool:
    return all(len(row) == 1 for row in expected.rows) and _is_vector(
        tuple(row[0] for row in expected.rows), found
    )


def _items_expression(expected: Items, found: Quantity) -> bool:
    """Compare a set with its one element, a point with the same point and its name, and a vector with a sum.

    A number that is written several times, as in `1/2 or 0.5`, is this number.
    """
    if expected.are_alternatives:
        return bool(expected.items) and all(
            isinstance(item, Quantity | Equation) and equal_forms(item, found) for item in expected.items
        )
    if expected.opened == "(" and (named := point(found.expression)) is not None:
        return equal_forms(expected, read(named[1]))
    return _set_of_one(expected, found) or (expected.opened == "(" and _is_vector(expected.items, found))


def _is_vector(expected: Sequence[Form], found: Quantity) -> bool:
    """Compare the elements of a vector with a sum of unit vectors, which in the plane has no third one."""
    parts = components(found.expression) if found.unit is None else None
    if parts is None or not (len(expected) == 3 or (len(expected) == 2 and parts[2] == "0")):
        return False
    return all(equal_forms(one, Quantity(other)) for one, other in zip(expected, parts, strict=False))


def _set_of_one(expected: Items, found: Form) -> bool:
    return expected.opened == "\\{" and len(expected.items) == 1 and equal_forms(expected.items[0], found)


def _word_expression(expected: Word, found: Quantity) -> bool:
    """Compare a single letter with an expression that may be equal to it."""
    return len(expected.text) == 1 and _quantities(Quantity(expected.text), found)


def _quantities(expected: Quantity, found: Quantity) -> bool:
    one, other = point(expected.expression), point(found.expression)
    if (
        one is not None
        and other is not None
        and one[0] == other[0]
        and equal_forms(read(one[1]), read(other[1]))
    ):
        return True
    parts = components(expected.expression) if expected.unit is None else None
    if parts is not None and _is_vector(tuple(map(Quantity, parts)), found):
        return True
    if is_marked_vector(expected.expression) or is_marked_vector(found.expression):
        return False
    return same_quantities(expected, found)


def _functions(expected: Piecewise, found: Piecewise) -> bool:
    same = same_functions(expected, found)
    return same_branches(expected, found, equal_forms) if same is None else same


_Rule = Callable[[Any, Any], bool]
_SETS = (Union, Inequality, Conditions, Excluding)
_RULES: dict[tuple[type, type], _Rule] = {
    (Word, Word): same_words,
    (Word, Quantity): _word_expression,
    (Clock, Clock): same_times,
    (Clock, Ratio): is_time_ratio,
    (Clock, Quantity): is_time_fraction,
    (Date, Date): same_dates,
    (Ratio, Ratio): same_ratios,
    (Ratio, Quantity): is_ratio_of,
    (Based, Based): lambda expected, found: expected == found,
    (Based, Quantity): is_based,
    (Infinite, Infinite): lambda expected, found: expected == found,
    (Quantity, Quantity): _quantities,
    (Equation, Equation): _equations,
    (Items, Items): _items,
    (Items, Quantity): _items_expression,
    (Items, Word): _set_of_one,
    **{(one, other): _sets for one in _SETS for other in (*_SETS, Items)},
    (Matrix, Matrix): _matrices,
    (Matrix, Items): _matrix_tuple,
    (Matrix, Quantity): _matrix_expression,
    (Piecewise, Piecewise): _functions,
    (Piecewise, Quantity): lambda expected, found: bool(same_functions(expected, found)),
    **{(Family, form): same_families for form in (Family, Congruence, Equation, Quantity)},
    **{(Congruence, form): same_families for form in (Family, Congruence, Equation)},
    **{(form, Family): same_families for form in (Equation, Quantity)},
    (Equation, Congruence): same_families,
    (TupleFamily, TupleFamily): same_tuples,
    (Restricted, Restricted): lambda expected, found: (
        equal_forms(expected.value, found.value) and equal_forms(expected.condition, found.condition)
    ),
    (Congruence, Quantity): lambda expected, found: is_residue(found, expected),
    **{
        pair: _labeled
        for form in (Word, Clock, Date, Ratio, Based, Infinite, Quantity, Items, Matrix, Piecewise, *_SETS)
        for pair in ((Equation, form), (form, Equation))
    },
    (Unread, Unread): lambda expected, found: as_written(expected.text) == as_written(found.text),
}
"""The rule for each pair of forms. Pairs that are missing are never equal."""
