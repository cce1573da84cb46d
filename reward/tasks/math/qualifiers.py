r"""Read what follows an answer and says what its letters stand for.

`x = \frac{\pi}{4} + k\pi, k \in \mathbb{Z}` is a family, `y = Ce^x` with C ∈ ℝ has an arbitrary constant, and
`f(x) = x` for all x is `f(x) = x`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from reward.tasks.math.domains import BEFORE, split_domain
from reward.tasks.math.forms import (
    Conditions,
    Congruence,
    Declared,
    Equation,
    Excluding,
    Family,
    Form,
    Inequality,
    Infinite,
    Items,
    Quantity,
    Restricted,
    TupleFamily,
    Union,
)
from reward.tasks.math.labels import base_and_letter, function_and_argument, is_variable
from reward.tasks.math.listed import numbers_in_words, permutations, whole_numbers
from reward.tasks.math.real_sets import set_variable
from reward.tasks.math.unit_names import DEGREE
from reward.tasks.math.vectors import coordinates
from reward.tasks.math.words import unwrapped

_NAME = r"[a-zA-Z](?:_\{?\d\}?)?"
_NAMES = rf"{_NAME}(?:\s*(?:,|and|,\s*and)\s*{_NAME})*"
_REAL = r"\\in\s*(?:\\mathbb\s*\{?R\}?|R(?![a-zA-Z]))"
_USUAL = re.compile(r"[abckmABCDKM](?:_\{?\d\}?)?")
"""The names of constants. With another name, a number that is real may be the unknown."""
_CONSTANT = re.compile(
    rf"^(?P<body>.+?){BEFORE}(?<![\w}}+\-*/=^])(?:(?P<member>{_NAMES})\s*{_REAL}(?:\s+(?:is|are)\s+(?:an?\s+)?arbitrary)?"
    rf"|(?:(?:arbitrary|real)\s+)*constants?\s+(?P<after>{_NAMES})(?:\s*{_REAL})?"
    rf"|(?P<any>real)\s+(?:numbers?\s+)?(?P<real>{_NAMES})|(?P<nonzero>{_NAME})\s*\\ne\s*0"
    rf"|(?P<before>{_NAMES})\s+(?:(?:is|are|being)\s+)?(?:(?:an?|any|arbitrary|real)\s+)*"
    r"(?P<kind>constants?|real|arbitrary))\s*\)?$"
)
_FOR_ALL = re.compile(
    r"^(?P<body>.+?)[,;]?\s*(?:(?:for (?:all|every|each|any)|\\forall)\s*(?:real\s+)?(?:numbers?\s+)?"
    rf"(?P<name>[a-zA-Z])(?:\s*{_REAL}|\s*\\in\s*\\mathbb\s*\{{?[NZ]\}}?[^,;]{{0,12}}|\s*(?:>|\\ge)\s*\d+)?"
    rf"|\(?(?P<member>[a-zA-Z])\s*{_REAL}\)?)$"
)
_RESTRICTED = re.compile(
    rf"^(?P<body>[^<>,]+?){BEFORE}(?<![\w}}+\-*/=^])(?P<condition>(?:-?\d+\s*(?:<|>|\\le|\\ge)\s*)?[a-z]\s*(?:<|>|\\(?:ne|le|ge)(?![a-zA-Z]))[^=()]+)\)?$"
)
_MODULUS = re.compile(
    r"^(?P<body>.*?)\s*(?P<sign>\\pmod|\(\s*\\?mod(?![a-zA-Z])|\\mod)\s*\{?\s*(?P<modulus>\d{1,6})\s*\}?\s*\)?$"
)
_EQUIVALENT = re.compile(r"\\equiv(?![a-zA-Z])")


def qualified(text: str, read: Callable[[str], Form]) -> Form | None:
    """Read an answer with such a part at its end, or return None if it has no such part, or one that says more."""
    if "\\equiv" in text or "mod" in text:
        return congruence(text, read)
    plain = unwrapped(text)
    if (listed := numbers_in_words(plain) or permutations(plain, read)) is not None:
        return listed
    if len(plain) > 400 or not re.search(
        r"\\in|\\forall|\\ge|>|\\ne|integer|number|constant|real|arbitrary|for (?:all|every|each|any)|\\ldots",
        plain,
    ):
        return None
    if plain.startswith("\\{") and plain.endswith("\\}") and plain.count("\\{") == 1:
        plain = re.sub(r"^\\?[a-zA-Z]+\s*[|:]", "", plain[2:-2].strip()).strip()
        if (numbers := whole_numbers(plain, read)) is not None:
            return numbers
        form = _family(plain, read) or _with_constants(re.sub(r"[|:]", ",", plain), read)
        return form if not isinstance(form, Declared) or coordinates(form.value) else None
    return (
        _family(plain, read)
        or _with_constants(plain, read)
        or _for_all(plain, read)
        or _restricted(plain, read)
    )


def _family(plain: str, read: Callable[[str], Form]) -> Form | None:
    found = split_domain(plain)
    if found is None or not re.search(
        rf"(?<![\\a-zA-Z]){found[1].letter}|\\[a-zA-Z]+\s+{found[1].letter}", found[0]
    ):
        return None
    (_, domain), form = found, read(found[0])
    if isinstance(form, Inequality) and form.sign == "!=" and form.variable not in (None, domain.letter):
        return Excluding(
            Items((Infinite(False), Infinite(True)), "(", ")"),
            Family(None, domain.letter, (form.right,), domain.least),
        )
    members = _members(form)
    if members is None:
        tuples = _tuples(form, domain.letter)
        return TupleFamily(domain.letter, tuples, domain.least) if tuples else None
    variable, expressions = members
    if variable is not None and not _is_unknown(variable, domain.letter):
        return None
    return Family(variable, domain.letter, expressions, domain.least)


def _is_unknown(label: str, parameter: str) -> bool:
    """Return whether a label is that of what has the values of a family: `x`, or `P(x)`, but not `a_n`."""
    function = function_and_argument(label)
    if function is not None:
        return parameter not in function
    return is_variable(label) and label != parameter and f"_{parameter}" not in label


def _tuples(form: Form, parameter: str) -> tuple[Items, ...]:
    """Return the points or intervals that a form consists of; none if it has other parts."""
    match form:
        case Inequality(variable=str() as variable, interval=interval) if variable != parameter and interval:
            return _tuples(interval, parameter)
        case Equation(label=str() as label, value=value) if parameter not in re.findall("[a-z]", label):
            return _tuples(value, parameter)
        case Items(opened="(" | "[", items=items) if all(map(_is_expression, items)):
            return (form,)
        case Items(opened="", items=items) if point := _point(items, parameter):
            return (point,)
        case Items(opened="" | "\\{", items=parts) | Union(parts=parts):
            tuples = [_tuples(part, parameter) for part in parts]
            return tuple(each for part in tuples for each in part) if all(tuples) else ()
    return ()


def _is_expression(form: Form) -> bool:
    return isinstance(form, Quantity) and form.unit is None


def _point(items: Sequence[Form], parameter: str) -> Items | None:
    """Return `x = k, y = 2k` as a point, with its coordinates in the order of their names."""
    coordinates = {
        item.label: item.value
        for item in items
        if isinstance(item, Equation)
        and item.label
        and is_variable(item.label)
        and _is_expression(item.value)
    }
    if len(coordinates) < max(2, len(items)) or parameter in coordinates:
        return None
    return Items(tuple(coordinates[label] for label in sorted(coordinates)), "(", ")")


def _members(form: Form) -> tuple[str | None, tuple[str, ...]] | None:
    """Return the variable of a list of equations or expressions, and the expressions."""
    match form:
        case Quantity(unit=None):
            return None, (form.expression,)
        case Quantity(unit=unit) if unit == DEGREE:
            return None, (rf"{form.expression}^\circ ",)
        case Equation(label=str() as label, value=value):
            members = _members(value)
            return (label, members[1]) if members is not None and members[0] is None else None
        case Items(opened="" | "\\{", items=items):
            parts = [_members(item) for item in items]
            variables = {part[0] for part in parts if part is not None} - {None}
            if None in parts or len(variables) > 1:
                return None
            expressions = tuple(each for part in parts if part is not None for each in part[1])
            return (min(filter(None, variables)) if variables else None), expressions
    return None


def _with_constants(plain: str, read: Callable[[str], Form]) -> Form | None:
    found = _CONSTANT.match(plain)
    if not found:
        return None
    said = next(filter(None, (found[group] for group in ("member", "after", "real", "nonzero", "before"))))
    names = re.findall(_NAME, re.sub(r"\band\b", ",", said))
    value = read(found["body"].strip())
    if isinstance(value, Items) and not value.opened:
        value = _point(value.items, "") or value
    inner = value.value if isinstance(value, Equation) else value
    vector = coordinates(inner)
    is_constant = bool(found["after"]) or found["kind"] in ("constant", "constants")
    if not (vector or is_constant or all(map(_USUAL.fullmatch, names))):
        return None
    written = [
        part.expression for part in vector or (inner,) if isinstance(part, Quantity) and part.unit is None
    ]
    if len(written) != len(vector or (inner,)) or not all(
        any(re.search(rf"(?<![\\]){re.escape(name)}", text) for text in written) for name in names
    ):
        return None
    if isinstance(value, Equation) and (value.label is None or value.label in names):
        return None
    constants = tuple(re.sub(r"_\{(\d)\}", r"_\1", name) for name in names)
    return Declared(value, constants, bool(found["nonzero"]))


def _for_all(plain: str, read: Callable[[str], Form]) -> Form | None:
    found = _FOR_ALL.match(plain)
    form = read(found["body"].strip()) if found else None
    if (
        found is not None
        and isinstance(form, (Inequality, Conditions))
        and set_variable(form) == found["member"]
    ):
        return form
    if found is None or not isinstance(form, Equation):
        return None
    function = function_and_argument(form.label) or base_and_letter(form.label)
    return form if function is not None and function[1] == (found["name"] or found["member"]) else None


def _restricted(plain: str, read: Callable[[str], Form]) -> Form | None:
    found = _RESTRICTED.match(plain)
    if not found or "\\begin" in plain:
        return None
    value, condition = read(found["body"].strip()), read(found["condition"].strip())
    if not isinstance(value, Equation) or not isinstance(condition, (Inequality, Conditions)):
        return None
    name = set_variable(condition)
    is_curve = value.label is None or value.label == "y" or function_and_argument(value.label) is not None
    if (
        name is None
        or not is_curve
        or not re.search(rf"(?<![\\a-zA-Z]){name}(?![a-zA-Z])", value.left + " " + value.right)
    ):
        return None
    return Restricted(value, condition)


def congruence(text: str, read: Callable[[str], Form]) -> Form | None:
    r"""Read `x \equiv 3 \pmod 7` and `3 \pmod 7`. `10 \mod 7` without `\equiv` is an expression, the remainder."""
    found = _MODULUS.match(unwrapped(text))
    if not found or int(found["modulus"]) == 0:
        return None
    left, *right = _EQUIVALENT.split(found["body"])
    if len(right) > 1 or (not right and found["sign"] == "\\mod") or re.search(r"mod|[<>=]", found["body"]):
        return None
    members = _members(read((right[0] if right else left).strip()))
    if members is None or members[0] is not None:
        return None
    return Congruence(left.strip() if right else "", members[1], int(found["modulus"]))
