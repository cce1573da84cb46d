"""Answers with letters that stand for many values are equal if and only if they have the same values."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reward.tasks.math.comparison import equal

steps = st.integers(-4, 4).filter(bool)
DOMAINS = {
    0: (
        r"k \ge 0",
        r"k\in\mathbb{Z}_{\ge 0}",
        r"k=0,1,2,\ldots",
        r"\text{for nonnegative integers } k",
        r"k > -1",
    ),
    1: (
        r"k \ge 1",
        r"k\in\mathbb{Z}^+",
        r"k=1,2,3,\ldots",
        r"\text{for any positive integer } k",
        r"k\in\mathbb{N}^*",
    ),
    2: (
        r"k \ge 2",
        r"k \geq 2 \text{ is an integer}",
        r"k = 2, 3, 4, \dots",
        r"\text{for all integers } k > 1",
    ),
}
"""Words and signs for the whole numbers from 0, 1 and 2 on."""
domains = st.sampled_from([(least, text) for least, texts in DOMAINS.items() for text in texts])


@settings(max_examples=40, deadline=None)
@given(st.integers(-3, 3), steps, domains, st.integers(-3, 3), steps, domains)
@example(3, 2, (0, DOMAINS[0][0]), 1, 2, (1, DOMAINS[1][0]))
def test_families_with_a_least_number(
    start: int, step: int, domain: tuple[int, str], other: int, by: int, other_domain: tuple[int, str]
) -> None:
    """They are equal if and only if their members are, one after the other."""

    def members(first: int, each: int, least: int) -> list[int]:
        return [first + each * number for number in range(least, least + 9)]

    one = f"n = {start} {step:+}k, {domain[1]}"
    two = f"n = {other} {by:+}k, {other_domain[1]}"
    same = members(start, step, domain[0]) == members(other, by, other_domain[0])
    assert equal(one, two) == same
    assert equal(one, one.replace("k", "m"))
    assert not equal(one, rf"n = {start} {step:+}k, k\in\mathbb{{Z}}")


@settings(max_examples=40, deadline=None)
@given(st.integers(-5, 5), st.integers(-5, 5), steps, st.integers(-2, 2), st.integers(0, 1))
def test_families_of_points_and_intervals(low: int, high: int, step: int, shift: int, wrong: int) -> None:
    """The letter may be shifted and change its sign, but in all parts at once."""
    for opened, closed in (("(", ")"), ("[", "]"), ("[", ")")):
        one = rf"{opened}{low} {step:+}k\pi, {high} {step:+}k\pi{closed}, k\in\mathbb{{Z}}"
        moved = [f"{end} {step * shift:+}\\pi {-step:+}m\\pi" for end in (low, high + wrong)]
        other = rf"{opened}{moved[0]}, {moved[1]}{closed} (m\in\mathbb{{Z}})"
        assert equal(one, other) == (not wrong)
        still = other.replace(f"{-step:+}m\\pi, ", ", ")
        assert still != other
        assert not equal(one, still)
    assert equal(rf"{low}+k<x<{high}+k, k\in\mathbb{{Z}}", rf"({low}+n, {high}+n), n\in\mathbb{{Z}}")


coefficients = st.lists(st.integers(-3, 3), min_size=4, max_size=4)


@settings(max_examples=30, deadline=None)
@given(coefficients, st.sampled_from(["", " + x^2", " - 1"]), st.sampled_from(["", " + x^2", " + 3e^x"]))
@example([1, 1, 1, -1], "", "")
def test_general_solutions_are_spaces(mixed: list[int], start: str, other: str) -> None:
    a, b, c, d = mixed
    reference = rf"y = C_1e^x + C_2e^{{-x}}{start}"
    answer = rf"y = A({a}e^x {b:+}e^{{-x}}) + B({c}e^x {d:+}e^{{-x}}){other}"
    in_space = start == other.replace(" + 3e^x", "")
    assert equal(reference, answer) == (a * d != b * c and in_space)
    assert not equal(reference, rf"y = Ae^x{start}")
    assert not equal(reference, rf"y = e^x + e^{{-x}}{start}")


vectors = st.lists(st.integers(-3, 3), min_size=3, max_size=3)


@settings(max_examples=40, deadline=None)
@given(vectors, vectors.filter(any), vectors, vectors.filter(any), steps, st.integers(-2, 2))
def test_lines_are_sets_of_points(
    start: list[int], along: list[int], other: list[int], by: list[int], factor: int, shift: int
) -> None:
    def line(point: list[int], direction: list[int], letter: str) -> str:
        parts = [f"{number} {each:+}{letter}" for number, each in zip(point, direction, strict=True)]
        return rf"({', '.join(parts)}), {letter}\in\mathbb{{R}}"

    def is_parallel(one: list[int], two: list[int]) -> bool:
        return all(one[i] * two[j] == one[j] * two[i] for i, j in itertools.combinations(range(3), 2))

    reference = line(start, along, "t")
    moved = [number + shift * each for number, each in zip(start, along, strict=True)]
    assert equal(reference, line(moved, [factor * each for each in along], "s"))
    between = [a - b for a, b in zip(start, other, strict=True)]
    same = is_parallel(along, by) and is_parallel(between, along)
    assert equal(reference, line(other, by, "s")) == same


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(0, 3), st.integers(1, 4), st.integers(0, 3))
def test_cases_of_odd_and_even_numbers(one: int, shift: int, other: int, moved: int) -> None:
    def cases(factor: int, rest: int) -> list[str]:
        even, odd = rf"\frac{{{factor}n}}{{2}} + {rest}", rf"\frac{{{factor}n-{factor}}}{{2}} + {rest}"
        return [
            rf"\begin{{cases}} {even} & \text{{if }} n \text{{ is even}} \\ {odd} & n \text{{ odd}} \end{{cases}}",
            rf"\begin{{cases}} {odd} & n \equiv 1 \pmod 2 \\ {even} & \text{{otherwise}} \end{{cases}}",
            rf"{even} \text{{ for }} n \text{{ even and }} {odd} \text{{ for }} n \text{{ odd}}",
        ]

    floor = rf"{other} \left\lfloor\frac n2\right\rfloor + {moved}"
    same = (one, shift) == (other, moved)
    for text in cases(one, shift):
        assert equal(text, floor) == same
        assert all(equal(text, second) == same for second in cases(other, moved))
        if "even" in text:
            swapped = text.replace("even", "ODD").replace("odd", "even").replace("ODD", "odd")
            assert not equal(text, swapped)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=3))
def test_permutations_are_all_of_them(numbers: list[int]) -> None:
    every = sorted(set(itertools.permutations(numbers)))
    listed = [f"({', '.join(map(str, order))})" for order in every]
    for words in ("and its permutations", "and all permutations thereof", "and permutations", "in any order"):
        assert equal(f"{listed[-1]} {words}", ", ".join(listed))
        if len(every) > 1:
            assert not equal(f"{listed[0]} {words}", listed[0])
            assert not equal(f"{listed[0]} {words}", ", ".join(listed[1:]))


@settings(max_examples=30, deadline=None)
@given(st.integers(-4000, 4000), st.integers(-4000, 4000))
def test_temperatures_are_converted(one: int, other: int) -> None:
    celsius, kelvin = Fraction(one, 10), Fraction(other, 10)
    assert equal(f"{float(kelvin)} K", rf"{float(celsius)}^\circ\text{{C}}") == (
        celsius + Fraction("273.15") == kelvin
    )
    exact = celsius + Fraction("273.15")
    assert equal(rf"{float(exact)}\text{{ K}}", rf"{float(celsius)}^\circ\text{{C}}")
    fahrenheit = celsius * Fraction(9, 5) + 32
    assert equal(rf"{float(celsius)}^\circ C", rf"{float(fahrenheit)}^\circ F")


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        (r"\frac18", r"\frac{1}{8}, \text{ attained when } a = b = \frac12", True),
        ("2", r"2 \text{ (equality iff } a = b = c = 1\text{)}", True),
        (r"\frac{ab}{a+b}", r"\frac{ab}{a+b}, \text{ where } a = AB \text{ and } b = CD", True),
        (
            r"\frac{\sqrt3}{4}a^2",
            r"S = \frac{a^2\sqrt{3}}{4}, \text{ where } a \text{ is the side length}",
            True,
        ),
        ("y=Ce^x", r"y=Ce^x \text{ where } C = 2", False),
        ("Ce^x", r"2e^x, \text{ where } e \text{ is the base}", False),
        ("n is even", r"\text{if and only if } n \text{ is even}", True),
        (r"n\ge 5", r"\text{Such a tiling exists if and only if } n \ge 5", True),
        (r"n\ge 5", r"\text{Such a tiling exists if and only if } n \ge 6", False),
        ("1, 3", r"\text{both } 1 \text{ and } 3", True),
        ("D", r"\text{point } D", True),
        ("Alice", r"\text{Alice wins}", True),
        ("Alice", r"\text{Alice loses}", False),
        ("no solution", r"\text{There are no such positive integers.}", True),
        ("371", "m+n = 371", True),
        ("371", "m+n = 372", False),
        ("x+y=5", "5", False),
        (r"\frac{\pi^2}{6}", r"\sum_{n=1}^{\infty} \frac{1}{n^2} = \frac{\pi^2}{6}", True),
        (r"\ln 2", r"\log 2", True),
        (r"\log_{10} 2", r"\log 2", True),
        (r"\ln 2", r"\log_{10} 2", False),
        (r"\ln 2", r"\lg 2", False),
        (r"\frac{n!}{k!(n-k)!}", r"\binom{n}{k}", True),
        (r"\frac{n!}{k!(n-k)!}", r"\binom{n}{k+1}", False),
        (r"\lceil n/2\rceil", r"\left\lfloor\frac{n+1}{2}\right\rfloor", True),
        (r"\lceil x/2\rceil", r"\left\lfloor\frac{x+1}{2}\right\rfloor", False),
        (r"x^2+y^2=4 (y\ne 0)", r"x^2+y^2=4,\ y \neq 0", True),
        (r"x^2+y^2=4 (y\ne 0)", "x^2+y^2=4", False),
        (r"x^2+y^2=4 (y\ne 0)", r"x^2+y^2=4,\ y \neq 1", False),
        (r"y=\pm 2x", r"2x\pm y=0", True),
        (r"y=\pm 2x", r"2x\pm 3y=0", False),
        (r"(1,2),(2,1)", r"(a,b)\in\{(2,1),(1,2)\}", True),
        (r"\{-1,0,1\}", r"\{n\in\mathbb{Z} : -1\le n\le 1\}", True),
        (r"\{-1,0,1\}", r"\{n\in\mathbb{Z} : -1\le n< 1\}", False),
        (r"x\ne\frac{\pi}{2}+k\pi, k\in\mathbb{Z}", r"x\neq \frac{(2k+1)\pi}{2},\ k\in\mathbb{Z}", True),
        (r"x\ne\frac{\pi}{2}+k\pi, k\in\mathbb{Z}", r"x\neq k\pi,\ k\in\mathbb{Z}", False),
        (r"x = 45^\circ + 180^\circ k", r"45^\circ+180^\circ n, n\in\mathbb Z", True),
        (r"x = 45^\circ + 180^\circ k", r"45^\circ+90^\circ n, n\in\mathbb Z", False),
        ("1 V", r"1000\text{ mV}", True),
        (r"101325\text{ Pa}", r"1\text{ atm}", True),
        (r"O(n^2)", r"\mathcal{O}(n^{2})", True),
        (r"O(n^2)", r"\mathcal{O}(n^{3})", False),
        (r"I(0)e^{-t}", r"I(t)=I(0)\exp(-t)", True),
        (r"I(0)e^{-t}", r"I(t)=2I(0)\exp(-t)", False),
    ],
)
def test_ways_of_writing(reference: str, answer: str, same: bool) -> None:
    assert equal(reference, answer) == same
