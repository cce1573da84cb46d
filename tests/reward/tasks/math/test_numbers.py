"""Numbers in other notations: repeating decimals, words, ratios."""

from __future__ import annotations

import calendar
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reward.tasks.math.comparison import equal
from reward.tasks.math.expressions import NotReadableError, parse

ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = [
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(number: int, with_and: bool) -> str:
    """Return a number below a million in English, with "and" as in British English or without."""
    if number >= 1000:
        rest = number % 1000
        link = " and " if with_and and 0 < rest < 100 else " "
        return (
            in_words(number // 1000, with_and)
            + " thousand"
            + (link + in_words(rest, with_and) if rest else "")
        )
    if number >= 100:
        rest = number % 100
        return f"{ONES[number // 100]} hundred" + (
            (" and " if with_and else " ") + in_words(rest, with_and) if rest else ""
        )
    if number >= 20:
        return TENS[number // 10 - 2] + (f"-{ONES[number % 10]}" if number % 10 else "")
    return TEENS[number - 10] if number >= 10 else ONES[number]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999_999), st.booleans(), st.integers(-3, 3))
def test_whole_numbers_in_words_are_these_numbers(number: int, with_and: bool, change: int) -> None:
    words = in_words(number, with_and)
    for text in (words, rf"\text{{{words}}}", words.capitalize(), f"{words} apples", words.replace("-", " ")):
        assert equal(str(number), text), text
        assert equal(text, str(number + change)) == (change == 0), text
    assert not equal(str(number), f"negative {words}") or number == 0
    assert equal(f"-{number}", f"minus {words}")


@pytest.mark.parametrize(
    "words",
    [
        *(
            "two thirds",
            "two-thirds",
            "two halves",
            "two quarters",
            "two twelfths",
            "two hundredths",
            "two point five",
        ),
        *(
            "two or three",
            "two to one",
            "two squared",
            "two dozen",
            "two three",
            "two hundred",
            "two plus x",
            "second",
        ),
        *(
            "two of three",
            "two n",
            "twotwo",
            "two and",
            "one two",
            "two zero",
            "two times three",
            "negative two",
        ),
    ],
)
def test_other_words_with_a_numeral_are_not_that_number(words: str) -> None:
    assert not equal("2", words)
    assert not equal(words, "2")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.text("0123456789", max_size=2), st.text("0123456789", min_size=1, max_size=4))
@example(0, "", "0111")
def test_repeating_decimals_are_fractions(whole: int, fixed: str, period: str) -> None:
    nines = 10 ** len(period) - 1
    value = (
        whole
        + Fraction(int(fixed or "0"), 10 ** len(fixed))
        + Fraction(int(period), nines * 10 ** len(fixed))
    )
    dotted = rf"\dot{{{period[0]}}}{period[1:-1]}" + (rf"\dot{{{period[-1]}}}" if len(period) > 1 else "")
    notations = [
        rf"{whole}.{fixed}\overline{{{period}}}",
        f"{whole}.{fixed}{dotted}",
        f"{whole}.{fixed}{period * 3}...",
    ]
    if not fixed:
        notations.append(f"{whole}.({period})")
    reference = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    for text in notations:
        assert equal(reference, text), text
        assert not equal(reference, f"{text}+10^{{-30}}")
    finite = f"{whole}.{fixed}{period}"
    assert equal(reference, finite) == (Fraction(finite) == value)


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        (r"\frac13", "0.3̅", True),
        (r"\frac13", "0.3̇", True),
        ("0.3", "0.3̅", False),
        (r"\frac13", "0.33...", False),
        (r"\pi", "3.14159...", False),
        ("0.1", r"0.1\ldots", False),
        ("6", "0.5(12)", True),
        ("1", "0.999...", True),
    ],
)
def test_a_decimal_without_a_clear_period_has_no_value(reference: str, answer: str, same: bool) -> None:
    assert equal(reference, answer) == same


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_a_ratio_is_the_number_of_its_fraction(a: int, b: int, c: int, d: int) -> None:
    ratio, same = f"{a}.0:{b}.0", a * d == b * c
    assert equal(ratio, rf"\frac{{{c}}}{{{d}}}") == same
    assert equal(rf"\frac{{{c}}}{{{d}}}", ratio) == same
    assert equal(ratio, rf"\frac{{{a}}}{{{b}}}")
    assert not equal(f"{ratio}:1", rf"\frac{{{a}}}{{{b}}}")


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        ("2:3", r"\frac23", True),
        ("3:10", "3/10", True),
        ("2:1", "2", True),
        ("11:11", "1", False),
        ("12:30", "0.4", False),
        ("4:05", r"\frac45", False),
        ("10:15 a.m.", r"\frac23", False),
        ("3:0", "0", False),
        ("2:3", r"\frac23 cm", False),
    ],
)
def test_a_time_of_day_is_no_number(reference: str, answer: str, same: bool) -> None:
    assert equal(reference, answer) == same
    assert equal(answer, reference) == same


@given(
    number=st.integers(1, 31),
    month=st.sampled_from([name.lower() for name in calendar.month_name[1:]]),
    end=st.sampled_from(["bles", "gins", "itors", "iors", "els", "ice", "ust balls", "ots", "s", "ks"]),
)
def test_a_noun_that_begins_like_a_month_is_no_month(number: int, month: str, end: str) -> None:
    """`6 marbles` are six, and no day in March."""
    assert equal(str(number), f"{number} {month[:3]}{end}")
    assert not equal(str(number % 31 + 1), f"{number} {month[:3]}{end}")
    for name in (month, month[:3], month.capitalize()):
        assert equal(f"{number} {month}", f"{name} {number}")
        assert not equal(f"{number % 31 + 1} {month}", f"{name} {number}")


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        ("15", "15 min", True),
        ("2 hours", "120 min", True),
        ("16", "16L", True),
        ("16", "16l", False),
        ("16 L", "16000 mL", True),
        ("11222300", r"11,\! 222,\! 300", True),
        ("11,222,300", r"11,\! 222,\! 301", False),
        ("96", "96 clips, altogether", True),
        ("96", "96, 12", False),
        (r"\frac{1}{2}", r"\frac{1}{2} \text{ or } 0.5", True),
        (r"\frac{1}{2}", r"\frac{1}{2} \text{ or } 0.6", False),
        (r"\frac{1}{2} \text{ or } \frac{1}{3}", r"\frac{1}{2}", False),
        ("1", "x = 1, y = 1", False),
    ],
)
def test_numbers_as_models_write_them(reference: str, answer: str, same: bool) -> None:
    assert equal(reference, answer) == equal(answer, reference) == same


def test_an_integral_is_refused_before_it_is_read() -> None:
    """Its parser takes exponential time for several of them: minutes for this text."""
    text = r"\int \integer " * 20
    with pytest.raises(NotReadableError, match="integral"):
        parse(text)
    assert equal(text, text)
    assert not equal("5", text)


@pytest.mark.parametrize("large", ["9^9", "10^{9}", "1000000", r"\log(\pi)", "(9!)!", r"5 \cdot 10^8"])
def test_binomial_coefficients_of_large_numbers_are_not_computed(large: str) -> None:
    for text in (rf"\binom{{{large}}}{{50}}", rf"\binom{{9^9}}{{{large}}}", rf"1+\binom{{{large}}}{{n}}"):
        with pytest.raises(NotReadableError, match="large numbers"):
            parse(text)
        assert equal(text, text)
        assert not equal("5", text)
    assert equal("120", r"\binom{10}{3}")
    assert equal("120", r"\binom{12-2}{1+2}")
    assert equal(r"\binom{n}{\lfloor n/2\rfloor}", r"\binom{n}{\lceil n/2\rceil}")
