"""The units of measure that are known, by their symbols and words.

A unit is a product of powers of base units with a factor. The base units of the SI are written with their quantity:
length in meters, mass in grams, time in seconds. Units that never turn into each other, such as dollars and euros, have
a base unit each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

Dimension = tuple[tuple[str, int], ...]
"""The powers of the base units, sorted by their names. Powers of zero are left out."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of measure: `scale` times a power of π times the base units of its dimension."""

    dimension: Dimension
    scale: Fraction
    pi: int = 0

    def times(self, other: Unit) -> Unit:
        powers = dict(self.dimension)
        for name, power in other.dimension:
            powers[name] = powers.get(name, 0) + power
        dimension = tuple(sorted((name, power) for name, power in powers.items() if power))
        return Unit(dimension, self.scale * other.scale, self.pi + other.pi)

    def to_the(self, power: int) -> Unit:
        dimension = tuple((name, each * power) for name, each in self.dimension) if power else ()
        return Unit(dimension, self.scale**power, self.pi * power)


_PREFIXES: Mapping[str, tuple[str, Fraction]] = {
    "n": ("nano", Fraction(1, 10**9)),
    "µ": ("micro", Fraction(1, 10**6)),
    "m": ("milli", Fraction(1, 1000)),
    "c": ("centi", Fraction(1, 100)),
    "d": ("deci", Fraction(1, 10)),
    "k": ("kilo", Fraction(1000)),
    "M": ("mega", Fraction(10**6)),
    "G": ("giga", Fraction(10**9)),
}
_SI: Mapping[str, tuple[str, str, Fraction]] = {
    "m": ("meter metre", "length", Fraction(1)),
    "g": ("gram gramme", "mass", Fraction(1)),
    "s": ("second", "time", Fraction(1)),
    "A": ("ampere amp", "current", Fraction(1)),
    "K": ("kelvin", "temperature", Fraction(1)),
    "mol": ("mole", "amount", Fraction(1)),
    "Hz": ("hertz", "time-1", Fraction(1)),
    "N": ("newton", "mass length time-2", Fraction(1000)),
    "Pa": ("pascal", "mass length-1 time-2", Fraction(1000)),
    "J": ("joule", "mass length2 time-2", Fraction(1000)),
    "W": ("watt", "mass length2 time-3", Fraction(1000)),
    "Wh": ("watthour", "mass length2 time-2", Fraction(3_600_000)),
    "V": ("volt", "mass length2 time-3 current-1", Fraction(1000)),
    "Ω": ("ohm", "mass length2 time-3 current-2", Fraction(1000)),
    "F": ("farad", "mass-1 length-2 time4 current2", Fraction(1, 1000)),
    "C": ("coulomb", "current time", Fraction(1)),
    "T": ("tesla", "mass time-2 current-1", Fraction(1000)),
    "L": ("liter litre", "length3", Fraction(1, 1000)),
    "l": ("", "length3", Fraction(1, 1000)),
    "eV": ("electronvolt", "electronvolt", Fraction(1)),
    "cal": ("calorie", "calorie", Fraction(1)),
    "rad": ("radian", "angle", Fraction(1)),
}
"""The units that take prefixes: their symbols, words, dimensions and factors."""
_OTHERS: Mapping[str, Mapping[str, str | int]] = {
    "length": {
        "inch inche in": "127/5000", "foot feet ft": "381/1250", "yard yd": "1143/1250", "mile mi": "1609344/1000",
    },
    "length3": {"cc": "1/1000000"},
    "time": {"sec": 1, "minute min": 60, "hour hr h": 3600, "day": 86400, "week": 604800},
    "months": {"month": 1, "year yr": 12, "decade": 120, "century centurie": 1200},
    "mass": {"ton tonne": 1000000},
    "weight": {"ounce oz": 1, "pound lb": 16},
    "liquid": {"cup": 1, "pint": 2, "quart qt": 4, "gallon gal": 16},
    "money": {"cent penny pennies pennie ¢": "1/100", "dollar usd $ buck": 1},
    "percent": {"% percent pct": 1},
    "euro": {"€ euro eur": 1}, "pound sterling": {"£ gbp": 1}, "rupee": {"₹ rupee rs inr": 1}, "yen": {"¥ yen": 1},
    "mass length-1 time-2": {"atm atmosphere": 101325000, "bar": 100000000},
    "mass time-2 current-1": {"gauss": "1/10"},
    "temperature c": {"°c celsius": 1}, "temperature f": {"°f fahrenheit": 1},
}  # fmt: skip
DEGREE = Unit((("angle", 1),), Fraction(1, 180), 1)


def _dimension(text: str) -> Dimension:
    """Read `mass length2 time-2`. A name without a digit has the power 1."""
    powers = {}
    for word in text.split():
        name = word.rstrip("-0123456789")
        powers[name] = int(word[len(name) :] or 1)
    return tuple(sorted(powers.items()))


@cache
def si_units() -> Mapping[str, Unit]:
    """Return the symbols and the words of the SI, with and without a prefix. Symbols keep their case."""
    units: dict[str, Unit] = {}
    for symbol, (words, powers, factor) in _SI.items():
        dimension = _dimension(powers)
        units[symbol] = Unit(dimension, factor)
        units |= {word: Unit(dimension, factor) for word in words.split()}
        for prefix, (prefix_word, scale) in _PREFIXES.items():
            units[prefix + symbol] = Unit(dimension, scale * factor)
            units |= {prefix_word + word: Unit(dimension, scale * factor) for word in words.split()}
    for letter in "CF":  # people write these for degrees Celsius and Fahrenheit
        del units[letter]
    return {**units, "Nm": units["N"].times(units["m"])}


@cache
def other_units() -> Mapping[str, Unit]:
    """Return the units outside the SI by their lower-case words, and symbols that people write in capitals."""
    units = {
        word: Unit(_dimension(name) if re.search(r"\d", name) else ((name, 1),), Fraction(scale))
        for name, table in _OTHERS.items()
        for words, scale in table.items()
        for word in words.split()
    }
    units |= dict.fromkeys(("degree", "deg", "°"), DEGREE)
    often = (
        "mm",
        "cm",
        "dm",
        "km",
        "kg",
        "mg",
        "ml",
        "cl",
        "ms",
        "kj",
        "kn",
        "kw",
        "hz",
        "khz",
        "mhz",
        "kwh",
    )
    symbols = {symbol.lower(): unit for symbol, unit in si_units().items() if not symbol.startswith("M")}
    symbols["mhz"] = si_units()["MHz"]
    return {**units, **{symbol: symbols[symbol] for symbol in often}}


def unit_named(word: str) -> Unit | None:
    """Return the unit with this symbol or word, singular or plural."""
    for form in _si_forms(word):
        if form in si_units():
            return si_units()[form]
    lowered = word.lower()
    if len(word) == 1 and word != lowered:
        return None
    for form in (lowered, lowered.removesuffix("s"), lowered.removesuffix("es")):
        if form in other_units():
            return other_units()[form]
    return None


def is_si(word: str) -> bool:
    """Return whether a word is a symbol or a word of the SI. Products are written with these."""
    return any(form in si_units() for form in _si_forms(word))


def _si_forms(word: str) -> tuple[str, ...]:
    """Return the ways to look up a word: symbols as they are, longer words in the singular and in lower case too."""
    return (
        (word,)
        if len(word) <= 3
        else (word, word.removesuffix("s"), word.lower(), word.lower().removesuffix("s"))
    )
