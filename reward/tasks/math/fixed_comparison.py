"""Compare answers with a fixed pattern: words, choices, times, dates, ratios, numbers with a base."""

from __future__ import annotations

import re
from fractions import Fraction

from reward.tasks.math.exact import exact_value
from reward.tasks.math.expressions import NotReadableError, parse
from reward.tasks.math.forms import Based, Choice, Clock, Date, Form, Items, Letters, Quantity, Ratio, Word
from reward.tasks.math.values import NoValueError, names_of

_HALF_DAY_S = 12 * 3600
_FRACTION = re.compile(r"\\frac|/")


def same_words(expected: Word, found: Word) -> bool:
    if len(expected.text) == len(found.text) == 1 and expected.text.islower() != found.text.islower():
        return False  # variables
    return expected.text.casefold() == found.text.casefold()


def is_chosen(expected: Form, found: Form) -> bool | None:
    """Return whether an answer chooses what the reference does, by a letter; None if it is for others to decide.

    `(B) 12` as an answer is the choice B, and no plain 12: it would be correct for two references that differ.
    """
    if isinstance(expected, Choice) and isinstance(found, (Choice, Word)):
        if isinstance(found, Word):
            return found.text == expected.letter
        return None if found.letter == expected.letter else False
    if isinstance(found, Choice):
        return isinstance(expected, Word) and expected.text == found.letter
    return None


def same_letters(expected: Letters, found: Form) -> bool:
    """Compare the letters of several choices: `A, C` is `C and A`, `{A, C}` and `AC`."""
    letters = sorted(expected.letters)
    if isinstance(found, Letters):
        return letters == sorted(found.letters)
    if isinstance(found, Word):
        return found.text == "".join(letters).casefold()
    if isinstance(found, Items) and found.opened == "\\{":
        return letters == sorted(item.text if isinstance(item, Word) else "" for item in found.items)
    return False


def same_times(expected: Clock, found: Clock) -> bool:
    (one, one_is_known), (other, other_is_known) = map(_seconds, (expected, found))
    return one == other if one_is_known and other_is_known else one % _HALF_DAY_S == other % _HALF_DAY_S


def _seconds(clock: Clock) -> tuple[int, bool]:
    """Return the seconds since midnight, and whether it is known which half of the day they are in."""
    hour, minute, second = clock.parts
    if clock.half:
        hour = hour % 12 + 12 * (clock.half == "pm")
    return hour * 3600 + minute * 60 + second, bool(clock.half) or hour > 12 or hour == 0


def same_dates(expected: Date, found: Date) -> bool:
    same_year = not expected.year or not found.year or expected.year == found.year
    return same_year and (expected.month, expected.day) == (found.month, found.day)


def same_ratios(expected: Ratio, found: Ratio) -> bool:
    if len(expected.terms) != len(found.terms):
        return False
    pairs = list(zip(expected.terms, found.terms, strict=True))
    return all(a * pairs[0][1] == pairs[0][0] * b for a, b in pairs) and all(
        (a == 0) == (b == 0) for a, b in pairs
    )


def is_ratio_of(expected: Ratio, found: Quantity) -> bool:
    """Compare `2:3` with a number: it is 2/3."""
    if found.unit is not None or len(expected.terms) != 2 or expected.terms[1] == 0:
        return False
    try:
        tree = parse(found.expression)
        return not names_of(tree) and exact_value(tree) == expected.terms[0] / expected.terms[1]
    except (NotReadableError, NoValueError):
        return False


def is_time_ratio(expected: Clock, found: Ratio) -> bool:
    """Compare `4:10`, which is read as a time, with a ratio."""
    ratio = _as_ratio(expected)
    return ratio is not None and same_ratios(ratio, found)


def is_time_fraction(expected: Clock, found: Quantity) -> bool:
    """Compare `4:10`, which is read as a time, with a fraction that is written as one. `4:05` is only a time."""
    ratio = _as_ratio(expected)
    if ratio is None or ratio.terms[1] < 10 or not _FRACTION.search(found.expression):
        return False
    return is_ratio_of(ratio, found)


def _as_ratio(clock: Clock) -> Ratio | None:
    hour, minute, second = clock.parts
    return None if clock.half or clock.is_said or second else Ratio((Fraction(hour), Fraction(minute)))


def is_based(expected: Based, found: Quantity) -> bool:
    return found.unit is None and found.expression.upper().lstrip("0") == expected.digits.lstrip("0")
