"""Units of measure beside a number.

A unit on one side only is ignored, because the question names it. Two units must have the same dimension, and the
numbers are converted. A noun that is no unit of measure ("72 apples") is never compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit: `scale` times the base unit of a dimension such as ("length", 2)."""

    dimension: tuple[str, int]
    scale: Fraction


_TABLE: Mapping[str, Mapping[str, str | int]] = {
    "length": {
        "mm millimeter millimetre": "1/1000", "cm centimeter centimetre": "1/100", "dm decimeter decimetre": "1/10",
        "m meter metre": 1, "km kilometer kilometre": 1000, "inch inches in": "127/5000", "foot feet ft": "381/1250",
        "yard yd": "1143/1250", "mile mi": "1609344/1000",
    },
    "time": {
        "ms millisecond": "1/1000", "second sec s": 1, "minute min": 60, "hour hr h": 3600, "day": 86400,
        "week": 604800,
    },
    "months": {"month": 1, "year yr": 12, "decade": 120, "century centuries": 1200},
    "mass": {"mg milligram": "1/1000", "g gram": 1, "kg kilogram": 1000, "ton tonne": 1000000},
    "weight": {"ounce oz": 1, "pound lb": 16},
    "volume": {"ml milliliter millilitre": "1/1000", "cl centiliter centilitre": "1/100", "l liter litre": 1},
    "liquid": {"cup": 1, "pint": 2, "quart qt": 4, "gallon gal": 16},
    "money": {"cent penny pennies ¢": "1/100", "dollar usd $ buck": 1},
    "energy": {"j joule": 1, "kj kilojoule": 1000}, "force": {"n newton": 1, "kn kilonewton": 1000},
    "power": {"w watt": 1, "kw kilowatt": 1000}, "frequency": {"hz hertz": 1, "khz": 1000, "mhz": 1000000},
    "percent": {"% percent pct": 1},
    "euro": {"€ euro eur": 1}, "pound sterling": {"£ gbp": 1}, "rupee": {"₹ rupee rs inr": 1}, "yen": {"¥ yen": 1},
    "degrees": {"degree deg °": 1}, "radians": {"radian rad": 1},
    "temperature c": {"°c celsius": 1}, "temperature f": {"°f fahrenheit": 1},
}  # fmt: skip
_FACTORS: dict[str, tuple[str, Fraction]] = {
    word: (dimension, Fraction(scale))
    for dimension, units in _TABLE.items()
    for words, scale in units.items()
    for word in words.split()
}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_WORD = re.compile(r"[A-Za-z]+|[$€£₹¥¢°%]")


def unit_of(text: str) -> Unit | None:
    """Return the unit of measure that a text names, or None if it names none that is known.

    Examples: `cm`, `square inches`, `ft^2`, `miles per hour`, `$`, `°`.
    """
    lowered = text.lower().replace("^\\circ", "°").replace("\\", " ")
    if lowered.startswith("° ") and (tail := lowered[2:].strip()) in ("c", "f"):
        lowered = f"temperature{tail}"
    lowered = re.sub(r"\bmph\b", "miles per hour", re.sub(r"\bkm?ph\b|\bkmh\b", "km per hour", lowered))
    if "/" in lowered or " per " in lowered:
        over, under = re.split(r"/|\bper\b", lowered, maxsplit=1)
        return _ratio(_simple(over), _simple(under))
    return _simple(lowered)


def _ratio(over: Unit | None, under: Unit | None) -> Unit | None:
    if over is None or under is None:
        return None
    names = (f"{over.dimension[0]}{over.dimension[1]} per {under.dimension[0]}", under.dimension[1])
    return Unit(names, over.scale / under.scale)


def _simple(text: str) -> Unit | None:
    if text.strip() in ("temperaturec", "temperaturef"):
        return Unit((text.strip(), 1), Fraction(1))
    exponent = re.search(r"\^\s*\{?\s*([23])\s*\}?\s*$", text)
    power = int(exponent[1]) if exponent else 1
    found: tuple[str, Fraction] | None = None
    for word in _WORD.findall(text[: exponent.start()] if exponent else text):
        if word in _POWERS:
            power = _POWERS[word]
        elif (known := _factor(word)) is not None:
            if found is not None:
                return None
            found = known
        elif found is not None:  # "dollars more", "hours later": the unit comes first
            continue
        else:
            return None
    return None if found is None else Unit((found[0], power), found[1] ** power)


def _factor(word: str) -> tuple[str, Fraction] | None:
    for form in (word, word.removesuffix("s"), word.removesuffix("es")):
        if form in _FACTORS:
            return _FACTORS[form]
    return None


def is_known_word(word: str) -> bool:
    """Return whether a word is a unit by itself."""
    return word.lower() in _POWERS or _factor(word.lower()) is not None
