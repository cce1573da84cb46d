r"""Read which whole numbers a letter stands for: `k \in \mathbb{Z}`, `n \ge 2`, `for positive integers m`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

BEFORE = r"[,;]?\s*[(|:]?\s*(?:(?:for|where|with|and|if|when)\s+)?(?:(?:any|some|all|every|each|an?)\s+|\\forall\s*)*"
"""The words and signs that may stand between an answer and the domain of its letters."""

_LETTER = r"(?P<letter>[a-z])"
_KIND = r"(?:(?P<kind>non-?\s?negative|positive|natural|whole)\s+)?(?:integers?|whole numbers?|numbers?)"
_SIGN = r"(?P<sign>\\ge(?![a-zA-Z])|>=|>)"
_SET = (
    r"(?:\\mathbb\s*\{?(?P<set>[ZN])\}?|(?P<plain>[ZN])(?![a-zA-Z]))\s*"
    r"(?:(?P<mark>[_^])\s*\{?\s*(?P<which>[^{},;()\s]*(?:\s\d)?)\s*\}?)?"
)
_BOUND = rf"(?:\s*[,;]?\s*(?:and\s+)?(?P=letter)?\s*{_SIGN}\s*(?P<bound>-?\d{{1,6}}))?"
_PATTERNS = tuple(
    re.compile(rf"^(?P<body>.+?){BEFORE}(?<![\w}}+\-*/=^]){said}\s*\)?$")
    for said in (
        rf"{_LETTER}\s*\\in\s*{_SET}{_BOUND}",
        rf"(?:{_KIND}\s+)?{_LETTER}\s*{_SIGN}\s*(?P<bound>-?\d{{1,6}})(?:\s*,?\s*(?:is\s+)?an integer)?",
        rf"{_LETTER}\s*=\s*(?P<listed>-?\d{{1,6}}\s*,\s*(?:\\pm\s*)?\d{{1,6}}\s*,[\d\s,\\pm]*)\\ldots",
        rf"{_KIND}\s+{_LETTER}{_BOUND}",
        rf"{_LETTER}\s+(?:(?:is|being)\s+)?(?:(?:an?|any|arbitrary)\s+)*{_KIND}",
    )
)
_LEAST_OF_KIND = {"positive": {1}, "natural": {0, 1}, "whole": {0}}
_LEAST_OF_SETS = {"": {0, 1}, "0": {0}, "+": {1}, "*": {1}}


@dataclass(frozen=True, slots=True)
class Domain:
    """The whole numbers that a letter stands for: all, or those from the least one on.

    `least` has no element if all are meant, and two where a word leaves it open: ℕ begins with 0 or with 1.
    """

    letter: str
    least: frozenset[int]


def split_domain(plain: str) -> tuple[str, Domain] | None:
    """Return what stands before the domain at the end of a text, and the domain; None if there is no domain."""
    for pattern in _PATTERNS:
        if found := pattern.match(plain):
            least = _least({name: value for name, value in found.groupdict().items() if value is not None})
            return None if least is None else (found["body"].strip(), Domain(found["letter"], least))
    return None


def _least(said: dict[str, str]) -> frozenset[int] | None:
    """Return the least numbers that the parts of a domain allow, or None if they are not understood."""
    if "listed" in said:
        return _least_of_list(said["listed"])
    name = said.get("set") or said.get("plain")
    if "bound" in said:
        if name is None and "kind" in said and said["kind"] not in ("whole", "natural"):
            return None
        return frozenset({int(said["bound"]) + (said["sign"] == ">")})
    if name is None:
        kind = re.sub(r"[-\s]", "", said.get("kind", ""))
        return frozenset({0}) if kind == "nonnegative" else frozenset(_LEAST_OF_KIND.get(kind, ()))
    which = said.get("which", "").strip() or (
        "*" if "mark" in said else ""
    )  # `^*` has lost its star as markdown
    if found := re.fullmatch(r"(?:\\ge|>=|>)\s*(\d)", which):
        return frozenset({int(found[1]) + (which[0] == ">" and which[1] != "=")})
    if name == "Z":
        return frozenset() if which == "" else frozenset({1}) if which in ("+", "*") else None
    return frozenset(_LEAST_OF_SETS[which]) if which in _LEAST_OF_SETS else None


def _least_of_list(text: str) -> frozenset[int] | None:
    r"""Read the numbers before the dots: `0, 1, 2` and `0, \pm 1, \pm 2`."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    numbers = [
        int(re.sub(r"\\pm\s*", "", part)) for part in parts if re.fullmatch(r"(?:\\pm\s*)?-?\d+", part)
    ]
    if len(numbers) != len(parts) or any(after - one != 1 for one, after in pairwise(numbers)):
        return None
    signs = ["\\pm" in part for part in parts]
    if not any(signs):
        return frozenset({numbers[0]})
    return frozenset() if numbers[0] == 0 and signs == [False] + [True] * (len(parts) - 1) else None
