"""Read words: whole numbers, yes and no, that there is no solution, and the letters of choices."""

from __future__ import annotations

import re
from collections.abc import Callable

from reward.tasks.math.forms import Choice, Form, Items, Letters, Quantity, Word
from reward.tasks.math.quantities import FUNCTION, is_noun
from reward.tasks.math.units import unit_of

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SMALL = {word: value for value, word in enumerate(_ONES)}
_TEN = {word: 10 * value for value, word in enumerate(_TENS, start=2)}
_NUMERAL = frozenset((*_SMALL, *_TEN, *_SCALES, "hundred"))
_NO_NOUN = re.compile(rf"{'|'.join(_NUMERAL)}|quarters?|dozens?|score|pairs?|[a-z]")
"""Words after a number in words that change its value: `three quarters` is 3/4."""
_FIRST_WORD = re.compile(r"(?:negative |minus )?([a-z]+)", re.IGNORECASE)
_IN_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_WORDS = re.compile(r"^[A-Za-z][A-Za-z' .\-]*$")
_CHOICE_BEFORE = re.compile(r"^(?:option|choice|answer)\s+(?=\(?[A-Za-z]\)?$)", re.IGNORECASE)
_CHOICE_WITH_VALUE = re.compile(r"^(?:\(([A-H])\)\s*|([A-H])\)\s*|([A-H])[.:]\s+):?\s*(?=[^\s)])(.+)$")
_LETTER = r"(?:\([A-H]\)|[A-H]\)?)"
_LETTERS = re.compile(rf"^{_LETTER}(?:\s*+(?:,\s*+(?:and\b\s*+)?|and\b\s*+|\\?&\s*+){_LETTER})+$")
_ASSENT = re.compile(r"^(yes|no|true|false)\s*[,.;:]\s*([a-z][a-z' ,\-]*)$", re.IGNORECASE)
_EXPLAINS = frozenset(
    (
        "it",
        "such",
        "this",
        "that",
        "these",
        "they",
        "there",
        "because",
        "since",
        "we",
        "one",
        "he",
        "she",
        "you",
        "as",
    )
)
_TURNS = re.compile(
    r"\b(?:yes|no|true|false|but|unless|except|only|if|or|when|whether|sometimes|depends?|although|however)\b",
    re.IGNORECASE,
)
_DENIES = re.compile(
    r"\b(?:not|cannot|never|impossible|none|nothing|incorrect|untrue)\b|n't\b", re.IGNORECASE
)
_AFFIRMS = re.compile(r"\b(?:possible|can|always|correct|exists?|holds?|works?)\b", re.IGNORECASE)
_NO_SOLUTION = re.compile(
    r"^(?:(?:the )?(?:equation|system|problem|inequality) has |there (?:is|are) |has )?"
    r"no (?:(?P<kind>(?:[a-z]+ )?)(?:solutions?|roots?)|such [a-z ]+?)(?: exists?)?$"
)


_WINS = re.compile(
    r"(?<=\w) (?:(?:always )?wins|will (?:always )?win|can (?:always )?win|has a winning strategy|can force a win)$"
)


def unwrapped(text: str) -> str:
    r"""Return a text with the content of each `\text{…}` in its place."""
    return _IN_TEXT.sub(r"\1", text).strip()


def number_in_words(plain: str) -> Quantity | None:
    """Read `twenty-four`, `one hundred and five` and `nine teams`. `two thirds` and `five point two` are not read."""
    first = _FIRST_WORD.match(plain)
    if first is None or first[1].lower() not in _NUMERAL or not _WORDS.match(plain):
        return None
    words = re.split(r"[\s\-]+", plain.rstrip(". ").lower())
    sign = "-" if words[0] in ("negative", "minus") else ""
    words = words[bool(sign) :]
    count = next(
        (index for index, word in enumerate(words) if word not in _NUMERAL and word != "and"), len(words)
    )
    number, noun = _whole_number(words[:count]), words[count:]
    if number is None or (noun and (not is_noun(noun[0]) or any(map(_NO_NOUN.fullmatch, noun)))):
        return None
    # in brackets, so that it is not taken for the digits of a number with a base
    return Quantity(f"{sign}({number})", unit_of(" ".join(noun)) if noun else None)


def _whole_number(words: list[str]) -> int | None:
    """Return the number that consists of all these words, or None: `two three` is no number, nor is `hundred`."""
    total, limit, rest = 0, 10**15, list(words)
    while rest:
        end = next((index for index, word in enumerate(rest) if word in _SCALES), len(rest))
        part = rest[1:end] if total and end == len(rest) and rest[0] == "and" else rest[:end]
        value = _below_thousand(part)
        scale = _SCALES[rest[end]] if end < len(rest) else 1
        if value is None or scale >= limit or (value == 0 and len(words) > 1):
            return None
        total, limit, rest = total + value * scale, scale, rest[end + 1 :]
    return total if words else None


def _below_thousand(words: list[str]) -> int | None:
    """Return the number from 0 to 999 that consists of all these words."""
    if len(words) >= 2 and words[1] == "hundred":
        hundreds = _SMALL.get(words[0], 0)
        rest = words[3:] if len(words) > 3 and words[2] == "and" else words[2:]
        value = _below_hundred(rest) if rest else 0
        return (
            100 * hundreds + value
            if 1 <= hundreds <= 9 and value is not None and (value or not rest)
            else None
        )
    return _below_hundred(words)


def _below_hundred(words: list[str]) -> int | None:
    if len(words) == 1:
        return _SMALL.get(words[0], _TEN.get(words[0]))
    if len(words) == 2 and words[0] in _TEN and 1 <= _SMALL.get(words[1], 0) <= 9:
        return _TEN[words[0]] + _SMALL[words[1]]
    return None


def choice_with_value(text: str, read: Callable[[str], Form]) -> Choice | None:
    """Read `(B) 12`, `B) 12` and `B: 12`. What follows is one value, and names no other choice."""
    found = _CHOICE_WITH_VALUE.match(unwrapped(text))
    if not found or re.search(r"(?<![A-Za-z])[A-H][).:]|\b(?:and|or)\b|;", found[4]):
        return None
    value = read(found[4].strip())
    if isinstance(value, Items) and not value.opened:
        return None
    return Choice(found[1] or found[2] or found[3], value)


def letters_of_choices(plain: str) -> Letters | None:
    """Read `A and C` and `(A), (C)`. With "or" the letters are no such answer, nor are they if one is repeated."""
    if not _LETTERS.match(plain):
        return None
    letters = re.findall(r"[A-H]", plain.replace("and", ""))
    return Letters(tuple(letters)) if len(set(letters)) == len(letters) else None


def yes_or_no(plain: str) -> Word | None:
    """Read `No, it is impossible` as `no`: a clause in words that explains the answer, and does not turn it."""
    found = _ASSENT.match(plain.rstrip(". "))
    if not found or found[2].split()[0].lower() not in _EXPLAINS or _TURNS.search(found[2]):
        return None
    word, denies = found[1].lower(), bool(_DENIES.search(found[2]))
    if denies if word in ("yes", "true") else (not denies and _AFFIRMS.search(found[2])):
        return None
    return Word(word)


def word(text: str) -> Form | None:
    """Read words and letters of choices. `xy` and everything with signs or digits is an expression."""
    marked = re.fullmatch(r"\\text\s*\{([^{}]*)\}", text)
    plain = unwrapped(text)
    choice = re.fullmatch(r"\(?\s*([A-Za-z])\s*\)?[.:]?", plain)
    if choice and (marked or len(plain) > 1 or choice[1].isupper()):
        return Word(choice[1].upper() if plain != choice[1] or marked else choice[1])
    plain = _CHOICE_BEFORE.sub("", re.sub(r"^\((.*)\)$", r"\1", plain))
    if len(plain) == 1 and plain.isupper():
        return Word(plain)
    if not _WORDS.match(plain) or FUNCTION.fullmatch(plain.lower()):
        return None
    if not marked and len(plain) <= 2 and not plain.isupper() and plain.lower() != "no":
        return None
    words = re.sub(r"[\s.\-]+", " ", plain).strip().casefold()
    words = re.sub(r"^(?:the|an|a) (?=\w)", "", words).replace("limit does not exist", "does not exist")
    return Word({"dne": "does not exist"}.get(words, _WINS.sub("", words)))


def no_solution(plain: str) -> Form | None:
    r"""Read that there is no solution, which is the empty set. `no real solution` is another answer.

    Over the complex numbers an equation without real solutions may have some, so the words decide.
    """
    words = re.sub(r"[\s.\-]+", " ", plain).strip().casefold()
    if words in ("none", "empty set", "the empty set"):
        return Items((), "\\{", "\\}")
    found = _NO_SOLUTION.match(words)
    if not found:
        return None
    return Word(f"no {found['kind']}solution") if found["kind"] else Items((), "\\{", "\\}")
