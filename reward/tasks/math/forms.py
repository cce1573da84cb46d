"""The forms that an answer may have. `reading.py` makes them from text, `comparison.py` compares them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from reward.tasks.math.unit_names import Unit

Sign = Literal["=", "<", ">", "<=", ">=", "!="]


@dataclass(frozen=True, slots=True)
class Word:
    """Words, a name, or the letter of a choice: lower case for words, upper case for a choice."""

    text: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The letter of a choice together with what the choice says, as in `(B) 12`."""

    letter: str
    value: Form


@dataclass(frozen=True, slots=True)
class Letters:
    """Several letters of choices, none of them twice."""

    letters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Clock:
    """A time of day, or a duration with a colon. `half` is "am", "pm", or "" where it is not said.

    `4:10` may also be a ratio, but not if a word such as "o'clock" follows (`is_said`).
    """

    parts: tuple[int, ...]
    half: str
    is_said: bool = False


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
    r"""Several answers, with the brackets around them: none for a list, `\{` for a set.

    `are_alternatives` is true for a list with "or" or `±`, which is never a point: each item is an answer by itself.
    """

    items: tuple[Form, ...]
    opened: str = ""
    closed: str = ""
    are_alternatives: bool = False

    @property
    def is_ordered(self) -> bool:
        return self.opened not in ("", "\\{") or any(item == ELLIPSIS for item in self.items)


@dataclass(frozen=True, slots=True)
class Union:
    """A union of intervals and other sets."""

    parts: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Conditions:
    """Inequalities and sets of numbers, with "or", "and" or only commas between them."""

    parts: tuple[Form, ...]
    joined: Literal["or", "and", ","]


@dataclass(frozen=True, slots=True)
class Excluding:
    r"""A set without the elements of another one: `\mathbb{R}\setminus\{2\}`."""

    whole: Form
    without: Form


@dataclass(frozen=True, slots=True)
class Family:
    r"""The values of expressions for all whole numbers: `x = \frac{\pi}{4} + k\pi` with k ∈ ℤ.

    With a `least` number, for those from it on; there are two where a word leaves it open: ℕ begins with 0 or with 1.
    """

    variable: str | None
    parameter: str
    expressions: tuple[str, ...]
    least: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class TupleFamily:
    r"""Points or intervals for all whole numbers, or for those from `least` on: `(2k\pi, 2k\pi+\pi)` with k ∈ ℤ."""

    parameter: str
    members: tuple[Items, ...]
    least: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Congruence:
    r"""The numbers with some remainders: `x \equiv 3 \pmod 7`. The left side is empty in `3 \pmod 7`."""

    left: str
    residues: tuple[str, ...]
    modulus: int


@dataclass(frozen=True, slots=True)
class Declared:
    """An answer with constants that are said to be arbitrary: `y = Ce^x` with C ∈ ℝ."""

    value: Form
    constants: tuple[str, ...]
    is_nonzero: bool = False
    """Whether the constant is said not to be zero."""


@dataclass(frozen=True, slots=True)
class Parity:
    """That a whole number is odd, or that it is even."""

    variable: str
    is_odd: bool


@dataclass(frozen=True, slots=True)
class Branch:
    """A value of a function, and the condition under which it is taken; None stands for "otherwise"."""

    value: str
    condition: Form | None


@dataclass(frozen=True, slots=True)
class Piecewise:
    """A function that is given by cases, which are tried one after the other."""

    branches: tuple[Branch, ...]


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
class Restricted:
    r"""A curve or a function without some of its points: `x^2+y^2=4` with `y \ne 0`."""

    value: Equation
    condition: Form


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
    | Choice
    | Letters
    | Clock
    | Date
    | Ratio
    | Based
    | Infinite
    | Quantity
    | Items
    | Union
    | Conditions
    | Excluding
    | Family
    | TupleFamily
    | Congruence
    | Declared
    | Parity
    | Piecewise
    | Matrix
    | Equation
    | Restricted
    | Inequality
    | Unread
)
