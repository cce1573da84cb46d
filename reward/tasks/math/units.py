"""Units of measure beside a number.

A unit on one side only is ignored, because the question names it. Two units must have the same dimension, and the
numbers are converted. A noun that is no unit of measure ("72 apples") is never compared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction

from reward.tasks.math.unit_names import Unit, is_si, unit_named

_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_POWERS_AFTER = {"squared": 2, "cubed": 3}
_PER_HOUR = ((r"\bmph\b", "mi/h"), (r"\b(?:km?ph|kmh)\b", "km/h"))
_TOKEN = re.compile(
    r"(?P<word>µ?[A-Za-z]+|µ?Ω|°[CF](?![a-z])|[$€£₹¥¢°%])|\^(?P<exponent>-?\d+)|(?P<sign>[/·()])|(?P<other>[^\s.,\-\[\]])"
)


def unit_of(text: str) -> Unit | None:
    """Return the unit of measure that a text names, or None if it names none that is known.

    Examples: `cm`, `square inches`, `ft^2`, `miles per hour`, `m s^{-1}`, `$`, `°`.
    """
    product = _Product()
    for token in _TOKEN.finditer(_plain(text)):
        if not product.take(token):
            return None
    return product.unit if product.is_complete() else None


def _plain(text: str) -> str:
    """Return the text of a unit without LaTeX, with `°`, `µ`, `Ω` and `·` for the commands, and `/` for fractions."""
    text = re.sub(r"\^\s*(?:\{\s*(-?\d+)\s*\}|(-?\d+))", r"^\1\2", text)
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"(\1)/(\2)", text)
    text = re.sub(r"\\(?:cdot|times)(?![a-zA-Z])|\*", "·", text)
    text = re.sub(r"\\mu(?![a-zA-Z])\s*|\\?\bmicro\s*\\", "µ", text)
    text = text.replace("µ\\", "µ").replace("^\\circ", "°").replace("\\Omega", "Ω")
    text = re.sub(r"°\s*([CF])\b", r"°\1", text)
    text = re.sub(r"\bdegrees? (?=celsius|fahrenheit)", "", text, flags=re.IGNORECASE)
    text = re.sub(r"\b(kilo|mega|giga|)watt[ \-]hours?\b", r"\1watthour", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<![A-Za-z])kW h(?![A-Za-z])", "kWh", text)
    for pattern, written in _PER_HOUR:
        text = re.sub(pattern, written, text, flags=re.IGNORECASE)
    return re.sub(r"\bper\b", "/", re.sub(r"[{}\\]", " ", text))


@dataclass
class _Product:
    """The factors of a unit, read from left to right."""

    factors: list[tuple[str, Unit, int]] = field(default_factory=list)
    """The words, their units and their exponents."""
    pending: int = 1
    """The power that a word such as "square" gives to the next unit."""
    below: bool = False
    """Whether the next unit is below a line."""
    divided: bool = False
    """Whether a unit was divided by, after which a further one without a line could be above or below."""
    group: int = 0
    """The number of open brackets; a line before them is for all that is in them."""
    is_joined: bool = True
    """Whether another unit may follow here."""
    has_ended: bool = False
    """Whether a word that is no unit has come after the unit, as in "dollars more"."""

    def take(self, token: re.Match[str]) -> bool:
        """Take a token. The result is false if the text names no unit."""
        if token["word"]:
            return self._word(token["word"])
        if token["exponent"]:
            return self._exponent(int(token["exponent"]))
        return bool(token["sign"]) and self._sign(token["sign"])

    @property
    def unit(self) -> Unit:
        product = Unit((), Fraction(1))
        for _, unit, power in self.factors:
            product = product.times(unit.to_the(power))
        return product

    def is_complete(self) -> bool:
        glued = any(
            word == "ms" and power < 0 for word, _, power in self.factors
        )  # `9.8 ms^{-2}` has two readings
        return bool(self.factors) and not self.below and self.pending == 1 and not self.group and not glued

    def _word(self, word: str) -> bool:
        if word.lower() in _POWERS and not self.has_ended:
            self.pending = _POWERS[word.lower()]
            return True
        if word.lower() in _POWERS_AFTER and self.factors:
            return self._exponent(_POWERS_AFTER[word.lower()])
        unit = unit_named(word)
        if unit is None:
            self.has_ended = True
            return bool(self.factors) and not self.below and self.pending == 1
        if self.has_ended or not (self.is_joined or (is_si(word) and is_si(self.factors[-1][0]))):
            return False
        if self.divided and not self.below and not self.group:
            return False
        self.factors.append((word, unit, self.pending * (-1 if self.below else 1)))
        self.pending, self.is_joined = 1, False
        if not self.group:
            self.divided, self.below = self.divided or self.below, False
        return True

    def _exponent(self, power: int) -> bool:
        if not self.factors or self.has_ended or not -9 <= power <= 9:
            return False
        word, unit, before = self.factors[-1]
        self.factors[-1] = (word, unit, before * power)
        return True

    def _sign(self, sign: str) -> bool:
        if self.has_ended:
            return True
        if sign == "(":
            self.group += 1
        elif sign == ")":
            if not self.group:
                return False
            self.group -= 1
            self.divided, self.below = self.divided or self.below, False
        elif not self.factors or self.below:
            return False
        else:
            self.below = sign == "/"
        self.is_joined = sign != ")"
        return self.group <= 1


def is_known_word(word: str) -> bool:
    """Return whether a word is a unit by itself."""
    return word.lower() in _POWERS or unit_named(word) is not None
