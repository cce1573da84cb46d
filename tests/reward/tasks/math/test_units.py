"""Units of measure are products of powers, and quantities with two of them are converted."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.tasks.math.comparison import equal
from reward.tasks.math.units import unit_of

PREFIXES = {"n": -9, r"\mu ": -6, "m": -3, "c": -2, "d": -1, "": 0, "k": 3, "M": 6, "G": 9}
SYMBOLS = ("m", "g", "s", "A", "Hz", "N", "Pa", "J", "W", "V", "L", "eV")


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SYMBOLS),
    st.sampled_from(SYMBOLS),
    st.sampled_from(sorted(PREFIXES)),
    st.sampled_from(sorted(PREFIXES)),
)
def test_prefixes_are_powers_of_ten(symbol: str, other: str, one: str, two: str) -> None:
    power = PREFIXES[one] - PREFIXES[two]
    reference = rf"3\ \mathrm{{{one}{symbol}}}"
    assert equal(reference, rf"3\times 10^{{{power}}}\text{{ {two}{symbol}}}")
    assert not equal(reference, rf"3\times 10^{{{power + 1}}}\text{{ {two}{symbol}}}")
    if other != symbol:
        assert not equal(rf"3\text{{ {one}{symbol}}}", rf"3\text{{ {one}{other}}}")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("msgA"), st.integers(-3, 3).filter(bool)), min_size=1, max_size=3),
    st.data(),
)
def test_the_factors_of_a_unit_have_no_order(factors: list[tuple[str, int]], data: st.DataObject) -> None:
    def product(parts: list[tuple[str, int]], blank: str) -> str:
        return blank.join(f"{symbol}^{{{power}}}" for symbol, power in parts)

    one = unit_of(product(factors, " "))
    assert one is not None
    assert one == unit_of(product(data.draw(st.permutations(factors)), r" \cdot "))
    assert one.to_the(-1).times(one).dimension == ()
    assert one.to_the(-1).times(one).scale == Fraction(1)


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        (r"90\text{ km/h}", r"25\ \mathrm{m\,s^{-1}}", True),
        (r"9.8\text{ m/s}^2", r"9.8\,\text{m}\cdot\text{s}^{-2}", True),
        (r"9.8\text{ m/s}^2", r"9.8\,\text{m}\cdot\text{s}^{-1}", False),
        (r"5 \mu m", r"5\times10^{-6}\text{ m}", True),
        ("5 µm", "5000 nm", True),
        ("1 kWh", r"3.6\times10^6\text{ J}", True),
        ("1 kilowatt-hour", "3.6 MJ", True),
        (r"6\text{ N m}", "6 J", True),
        (r"6\text{ N/m}", "6 J", False),
        ("3 MW", "3 mW", False),
        ("2 L", r"2000\text{ cm}^3", True),
        (r"4\text{ J/(kg K)}", r"4\text{ J kg}^{-1}\text{ K}^{-1}", True),
        (r"45\;\left[\frac{\text{miles}}{\text{hour}}\right]", "45 mph", True),
        ("5", "5 n", False),
        ("5", "5 squared", False),
        ("5", "5 quarters", True),
        ("5", "5 times", True),
        ("4", r"4\text{i}-\text{j}", False),
    ],
)
def test_units_in_many_notations(reference: str, answer: str, same: bool) -> None:
    assert equal(reference, answer) == same
    assert equal(answer, reference) == same


@settings(max_examples=20, deadline=None)
@given(st.integers(-12, 24).filter(bool), st.integers(1, 6).map(lambda n: 2 * n))
def test_degrees_are_radians_where_the_text_shows_it(top: int, bottom: int) -> None:
    degrees = Fraction(180 * top, bottom)
    angle, radians = (
        rf"\frac{{{degrees.numerator}}}{{{degrees.denominator}}}",
        rf"\frac{{{top}\pi}}{{{bottom}}}",
    )
    for text in (radians, rf"{radians}\text{{ radians}}", rf"{radians}\text{{ rad}}"):
        assert equal(rf"{angle}^\circ", text)
        assert equal(text, rf"{angle}\text{{ degrees}}")
        assert not equal(angle, text), "a number is no angle in degrees"
        assert not equal(rf"{angle}^\circ", text.replace(r"\pi", r"\pi\cdot 2"))
    assert not equal(rf"{angle}^\circ", rf"{angle}\text{{ radians}}")
    assert equal(rf"{angle}^\circ", angle)
