"""The forms that an answer may have. `reading.py` makes them from text, `comparison.py` compares them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from reward.tasks.math.units import Unit

Sign = Literal["=", "<", ">", "<=", ">=", "!="]


@dataclass(frozen=True, slots=True)
class Word:
    """Words, a name, or the letter of a choice: lower case for words, upper case for a choice."""

    text: str


@dataclass(frozen=True, slots=True)
class Clock:
    """A time of day, or a duration with a colon. `half` is "am", "pm", or "" where it is not said."""

    parts: tuple[int, ...]
    half: str


@dataclass(frozen=True, slots=True)
class Date:
    """A date; the parts that are not said are 0."""

    year: int
    month: int
    day: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """Two or more terms with colons between them."""

    terms: tuple[Fraction, ...]


@dataclass(frozen=True, slots=True)
class Based:
    """The digits of a number in a base that is written below it."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Infinite:
    """Plus or minus infinity."""

    positive: bool


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number or an expression (as cleaned LaTeX), and its unit of measure if it has one that is known."""

    expression: str
    unit: Unit | None = None


@dataclass(frozen=True, slots=True)
class Items:
    r"""Several answers, with the brackets around them: none for a list, `\{` for a set."""

    items: tuple[Form, ...]
    opened: str = ""
    closed: str = ""

    @property
    def is_ordered(self) -> bool:
        return self.opened not in ("", "\\{") or any(item == ELLIPSIS for item in self.items)


@dataclass(frozen=True, slots=True)
class Union:
    """A union of intervals and other sets."""

    parts: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple[Form, ...], ...]


@dataclass(frozen=True, slots=True)
class Equation:
    """`left = right`. `label` is the left side if it only names what the right side is: `x`, `f(x)`, `Area`."""

    left: str
    right: str
    label: str | None
    value: Form
    """The right side, read."""


@dataclass(frozen=True, slots=True)
class Inequality:
    """`left sign right`, and the interval that it means where one side is a single letter."""

    left: str
    sign: Sign
    right: str
    variable: str | None = None
    interval: Form | None = None


@dataclass(frozen=True, slots=True)
class Unread:
    """A text of no known form. It equals only itself."""

    text: str


ELLIPSIS = Word("...")
Form = (
    Word
    | Clock
    | Date
    | Ratio
    | Based
    | Infinite
    | Quantity
    | Items
    | Union
    | Matrix
    | Equation
    | Inequality
    | Unread
)
