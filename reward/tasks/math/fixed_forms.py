"""Read answers with a fixed pattern: times, dates, ratios, numbers with a base, infinity, words."""

from __future__ import annotations

import re
from calendar import month_abbr, month_name
from fractions import Fraction

from reward.tasks.math.forms import ELLIPSIS, Based, Clock, Date, Form, Infinite, Items, Ratio, Word
from reward.tasks.math.words import (
    letters_of_choices,
    no_solution,
    number_in_words,
    unwrapped,
    yes_or_no,
)

REAL_NUMBERS = Items((Infinite(False), Infinite(True)), "(", ")")

_CLOCK = re.compile(
    r"^(\d{1,2}):(\d{2})(?::(\d{2}))?\s*(?:\\text\s*\{)?\s*(?:([aApP])\.?\s?[mM]\.?|(hours|hrs|h|o'clock))?\s*\}?\.?$"
)
_HOUR = re.compile(r"^(\d{1,2})\s*(?:\\text\s*\{)?\s*([aApP])\.?\s?[mM]\.?\s*\}?\.?$")
_RATIO = re.compile(r"^\d+(?:\.\d+)?(?:\s*(?::|\bto\b)\s*\d+(?:\.\d+)?)+$")
_DATES = (
    re.compile(r"^(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})$"),
    re.compile(r"^(?P<month>\d{1,2})[/](?P<day>\d{1,2})[/](?P<year>\d{4})$"),
    re.compile(r"^(?P<name>[A-Za-z]{3,9})\.?\s+(?P<day>\d{1,2})(?:st|nd|rd|th)?(?:,?\s+(?P<year>\d{4}))?$"),
    re.compile(
        r"^(?P<day>\d{1,2})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<name>[A-Za-z]{3,9})\.?(?:,?\s+(?P<year>\d{4}))?$"
    ),
)
_MONTHS = {
    name.lower(): number for names in (month_name, month_abbr) for number, name in enumerate(names) if name
}
_MONTHS["sept"] = 9
_BASES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_BASED = re.compile(
    r"^\(?([0-9A-Fa-f]+)\)?\s*(?:_\s*\{?\s*(?:base\s*)?|\(?\s*base\s*)"
    rf"(\d{{1,2}}|{'|'.join(_BASES)})\s*[}})]?$"
)


def fixed_form(text: str) -> Form | None:
    """Read an answer that has one of the patterns, or return None."""
    plain = unwrapped(text)
    if re.fullmatch(r"\\mathbb\s*\{?R\}?|all (?:the )?real(?:s| numbers)?", plain):
        return REAL_NUMBERS
    if plain in ("infinity", "+infinity", "-infinity"):
        return Infinite(plain[0] != "-")
    plain = plain.removeprefix("on ")
    if plain in ("\\ldots", "..."):
        return ELLIPSIS
    if choice := re.fullmatch(r"\(\s*([A-Za-z])\s*\)", plain):
        return Word(choice[1].upper())
    if text == "\\{\\}" or plain == "\\emptyset":
        return Items((), "\\{", "\\}")
    for reader in (letters_of_choices, number_in_words, yes_or_no, no_solution):
        if (form := reader(plain)) is not None:
            return form
    if (time := _time(plain)) is not None:
        return time
    if _RATIO.match(plain):
        return Ratio(tuple(Fraction(term.strip()) for term in re.split(r":|\bto\b", plain)))
    if (date := _date(plain)) is not None:
        return date
    if found := _BASED.match(plain):
        base = int(found[2]) if found[2].isdecimal() else _BASES.index(found[2]) + 2
        return Based(found[1].upper().lstrip("0") or "0", base)
    if found := re.match(r"^([+-]?)\s*\\infty$", text):
        return Infinite(found[1] != "-")
    return None


def _time(plain: str) -> Clock | None:
    plain = re.sub(r"\s*\bnoon$", " p.m.", re.sub(r"\s*\bmidnight$", " a.m.", plain))
    if found := _CLOCK.match(plain):
        hour, minute, second, half, word = found.groups()
        if int(minute) < 60 and int(second or 0) < 60:
            parts = (int(hour), int(minute), int(second or 0))
            return Clock(parts, f"{half.lower()}m" if half else "", bool(word))
    if found := _HOUR.match(plain):
        return Clock((int(found[1]), 0, 0), f"{found[2].lower()}m")
    return None


def _date(text: str) -> Date | None:
    for pattern in _DATES:
        if found := pattern.match(text):
            parts = found.groupdict()
            name = (parts.get("name") or "").lower()
            if name and name not in _MONTHS:  # `6 marbles` is no day in March
                continue
            month = _MONTHS[name] if name else int(parts["month"])
            day = int(parts["day"])
            if 1 <= month <= 12 and 1 <= day <= 31:
                return Date(int(parts.get("year") or 0), month, day)
    return None
